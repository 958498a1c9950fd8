//! Messages, client and server of the agent's protocol, generated from the product's `.proto` files.

#![allow(unreachable_pub, missing_debug_implementations, clippy::all, clippy::pedantic, clippy::restriction)]

include!(concat!(env!("OUT_DIR"), "/messages.rs"));
