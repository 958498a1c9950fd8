//! From the client's stdin fifo to WriteStdin.
