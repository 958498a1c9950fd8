//! The TOML file and its drop-ins, as written.
