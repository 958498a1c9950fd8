//! JSON log lines to containerd's fifo and a bounded file.
