//! QMP events to our own: pure; unknown events are data.
