//! The `start` command: finds or makes the pod's shim and answers its address.
