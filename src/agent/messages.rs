//! The agent's messages, generated from `proto/`; seen by this module alone.

#![allow(unreachable_pub, missing_debug_implementations)]

include!(concat!(env!("OUT_DIR"), "/messages.rs"));
