//! One leaf cgroup per pod (v1 and v2): made, joined, emptied, removed.
