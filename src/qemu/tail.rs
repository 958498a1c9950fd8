//! The kept end of a text stream (stderr, console).
