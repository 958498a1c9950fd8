//! The agent's messages, generated from `proto/`; seen by this module alone.

#![allow(unreachable_pub, missing_debug_implementations, clippy::all)]
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::too_many_lines
)]

include!(concat!(env!("OUT_DIR"), "/agent/messages.rs"));
