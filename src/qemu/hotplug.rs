//! Plugging and unplugging disks over QMP.
