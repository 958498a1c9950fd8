//! The size of a pod's VM: memory and CPUs cannot be added to a secure guest later, so it starts with all that
//! the pod may ever use.
//!
//! | | |
//! | --- | --- |
//! | memory | `guest.memory_mib` + the containers' limits + 1/64 of these |
//! | CPUs | `guest.vcpus` + the containers' quotas in CPUs, rounded up; no more than the maximum size |
//!
//! The base is what the guest needs for itself (kernel, agent, bounce buffers) and what containers
//! without limits share. The 64th is for the guest kernel's page structures: 64 bytes for each page of 4 KiB.

use crate::error::{Error, Result};

/// Memory and virtual CPUs, fixed for the VM's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub memory_mib: u32,
    pub vcpus: u32,
}

/// The sum of the limits of the pod's containers; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Requested {
    pub memory_bytes: u64,
    /// Rounded up.
    pub cpus: u32,
}

/// The largest VM that is allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct VmMaximum {
    /// `guest.max_memory_mib` and `guest.max_vcpus`; 0: what the host has.
    pub memory_mib: u32,
    pub vcpus: u32,
    pub host: Capacity,
    /// The base is held to it as well: a pod has chosen it. One that the operator configured always fits.
    pub of_base: bool,
}

/// The host's memory and CPUs; 0: not known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capacity {
    pub memory_mib: u64,
    pub cpus: u32,
}

/// The VM's size, or why the pod is too large.
pub(crate) fn size(base: Size, requested: Requested, maximum: &VmMaximum) -> Result<Size> {
    Ok(Size { memory_mib: memory(base, requested, maximum)?, vcpus: cpus(base, requested, maximum)? })
}

fn memory(base: Size, requested: Requested, maximum: &VmMaximum) -> Result<u32> {
    let limits = requested.memory_bytes.div_ceil(1 << 20);
    let accounting = limits.div_ceil(64);
    let total = u64::from(base.memory_mib) + limits + accounting;
    let (most, whose) = match (maximum.memory_mib, maximum.host.memory_mib) {
        (0, 0) => (u64::from(u32::MAX), "the most a VM can have"),
        (0, host) => (host, "the memory of this machine"),
        (configured, _) => (configured.into(), "guest.max_memory_mib"),
    };
    let fits = u32::try_from(total).ok().filter(|_| limits == 0 && !maximum.of_base || total <= most);
    fits.ok_or_else(|| {
        Error::precondition(format!(
            "the pod needs a VM with {total} MiB of memory ({} MiB for the guest, {limits} MiB are the containers' \
             limits, {accounting} MiB to account for them), {most} MiB are allowed ({whose}): lower the limits or use a \
             larger node",
            base.memory_mib
        ))
    })
}

fn cpus(base: Size, requested: Requested, maximum: &VmMaximum) -> Result<u32> {
    let (most, whose) = match (maximum.vcpus, maximum.host.cpus) {
        (0, 0) => (u32::MAX, "the most a VM can have"),
        (0, host) => (host, "the CPUs of this machine"),
        (configured, _) => (configured, "guest.max_vcpus"),
    };
    if requested.cpus > most {
        return Err(Error::precondition(format!(
            "the containers' limits are {} CPUs, {most} are allowed ({whose}): lower the limits or use a larger node",
            requested.cpus
        )));
    }
    if maximum.of_base && base.vcpus > most {
        return Err(Error::precondition(format!(
            "the pod asks for a VM with {} CPUs, {most} are allowed ({whose}): ask for less or use a larger node",
            base.vcpus
        )));
    }
    Ok(base.vcpus.saturating_add(requested.cpus).min(most.max(base.vcpus)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Size = Size { memory_mib: 2048, vcpus: 1 };
    const HOST: Capacity = Capacity { memory_mib: 16384, cpus: 4 };

    fn of(memory_mib: u64, cpus: u32, max_memory_mib: u32, max_vcpus: u32) -> Result<(u32, u32)> {
        let maximum = VmMaximum { memory_mib: max_memory_mib, vcpus: max_vcpus, host: HOST, of_base: false };
        size(BASE, Requested { memory_bytes: memory_mib << 20, cpus }, &maximum)
            .map(|s| (s.memory_mib, s.vcpus))
    }

    #[test]
    fn a_base_that_a_pod_has_chosen_is_held_to_the_maximum_and_an_operators_fits() {
        let size_of = |memory_mib, vcpus, of_base| {
            let maximum = VmMaximum { host: HOST, of_base, ..VmMaximum::default() };
            size(Size { memory_mib, vcpus }, Requested::default(), &maximum).map_err(|e| e.to_string())
        };
        for (memory_mib, vcpus, wanted) in [
            (16385, 4, "with 16385 MiB of memory (16385 MiB for the guest, 0 MiB"),
            (16384, 5, "asks for a VM with 5 CPUs, 4 are allowed (the CPUs of this machine)"),
        ] {
            assert!(size_of(memory_mib, vcpus, false).is_ok());
            let e = size_of(memory_mib, vcpus, true).expect_err(wanted);
            assert!(e.contains(wanted), "{e}");
        }
        assert!(size_of(16384, 4, true).is_ok());
    }

    #[test]
    fn a_pods_limits_are_added_to_the_base() {
        for (memory, cpus, wanted) in [
            (0, 0, (2048, 1)),
            (1, 1, (2048 + 1 + 1, 2)),
            (64, 2, (2048 + 64 + 1, 3)),
            (65, 3, (2048 + 65 + 2, 4)),
            (6400, 4, (2048 + 6400 + 100, 4)),
        ] {
            assert_eq!(of(memory, cpus, 0, 0), Ok(wanted), "{memory} MiB, {cpus} CPUs");
        }
        let odd = Requested { memory_bytes: (1 << 20) + 1, cpus: 0 };
        assert_eq!(size(BASE, odd, &VmMaximum::default()).map(|s| s.memory_mib), Ok(2048 + 2 + 1));
    }

    #[test]
    fn a_pod_that_is_too_large_is_refused_with_both_numbers() {
        for (memory, cpus, max_memory, max_vcpus, wanted) in [
            (2015, 0, 4095, 0, "the pod needs a VM with 4095 MiB"),
            (
                2016,
                0,
                4095,
                0,
                "the pod needs a VM with 4096 MiB of memory (2048 MiB for the guest, 2016 MiB",
            ),
            (16384, 0, 0, 0, "the pod needs a VM with 18688 MiB of memory"),
            (0, 5, 0, 0, "the containers' limits are 5 CPUs, 4 are allowed (the CPUs of this machine)"),
            (0, 3, 0, 2, "the containers' limits are 3 CPUs, 2 are allowed (guest.max_vcpus)"),
        ] {
            match of(memory, cpus, max_memory, max_vcpus) {
                Ok(size) => assert_eq!(size, (4095, 1)),
                Err(e) => assert!(e.to_string().starts_with(wanted), "{e}"),
            }
        }
        let e = of(2016, 0, 4095, 0).expect_err("too large").to_string();
        assert!(e.contains("4095 MiB are allowed (guest.max_memory_mib)"), "{e}");
        let e = of(16384, 0, 0, 0).expect_err("too large").to_string();
        assert!(e.contains("16384 MiB are allowed (the memory of this machine)"), "{e}");
        let most = Requested { memory_bytes: u64::MAX, cpus: u32::MAX };
        assert!(size(BASE, most, &VmMaximum::default()).is_err(), "more than any VM");
    }

    #[test]
    fn the_base_fits_on_every_host() {
        let small = VmMaximum { host: Capacity { memory_mib: 1024, cpus: 1 }, ..VmMaximum::default() };
        let base = Size { memory_mib: 2048, vcpus: 4 };
        assert_eq!(size(base, Requested::default(), &small), Ok(base));
    }
}
