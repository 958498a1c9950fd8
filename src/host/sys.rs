//! Every unsafe block of the program, each with its reason.
