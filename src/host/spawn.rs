//! Starting programs: descriptor table, cgroup entry before exec, pidfd.
