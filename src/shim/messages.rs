//! Messages that containerd passes as bytes and no crate here has, generated from `proto/`.

#![allow(unreachable_pub, missing_debug_implementations, clippy::all, clippy::cast_possible_truncation)]

include!(concat!(env!("OUT_DIR"), "/shim/messages.rs"));
