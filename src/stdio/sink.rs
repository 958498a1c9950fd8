//! Where output goes: fifo, file or logging program.
