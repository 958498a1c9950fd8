//! The server process: one pod, one socket, two service names.
