//! The shim's command line.
