//! Sends the pod's events to containerd, in order.
