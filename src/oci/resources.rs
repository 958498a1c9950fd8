//! What Task.Update can change: the limits that the guest enforces, and the answer to the others.
//!
//! | requested | answer |
//! | --- | --- |
//! | CPU shares, quota, period; memory limit, reservation, swap | sent to the guest |
//! | a memory limit or CPU quota above the VM's size | refused: the size is fixed when the VM starts |
//! | a limit for huge pages other than 0 | refused: a secure VM's memory has no huge pages |
//! | a list of CPUs | not sent: QEMU itself runs on the CPUs of its pod's containers (`pod::scheduling`) |
//! | device rules, pids, block I/O, network classes, RDMA, `unified` | not sent, as at Create |
//!
//! The last row is no error: the kubelet sends all of a container's resources with each change, including
//! those that refer to the host.

use oci_spec::runtime::LinuxResources;

use crate::error::{Context, Error, Result};
use crate::plan::cpus::CpuList;
use crate::plan::size::Size;

/// The kernel's default period of a CPU quota, in microseconds.
pub(crate) const CPU_PERIOD: u64 = 100_000;

/// Limits that may be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct GuestResources(pub(crate) LinuxResources);

/// The host's CPUs that a container may use; empty: no restriction.
pub(crate) fn cpus(resources: Option<&LinuxResources>) -> Result<CpuList> {
    let text = resources.and_then(|r| r.cpu().as_ref()).and_then(|cpu| cpu.cpus().as_ref());
    CpuList::parse(text.map_or("", String::as_str)).context("resources.cpu.cpus")
}

/// Removes what refers to the host: device rules, pids, block I/O, network classes and cpusets.
pub(crate) fn trim(resources: &mut LinuxResources) {
    resources.set_devices(None);
    resources.set_pids(None);
    resources.set_block_io(None);
    resources.set_network(None);
    resources.set_rdma(None);
    resources.set_unified(None);
    if let Some(cpu) = resources.cpu_mut() {
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
}

/// The kubelet sends a limit of 0 for every container.
pub(super) fn check_huge_pages(resources: &LinuxResources) -> Result<()> {
    match resources.hugepage_limits().iter().flatten().find(|pages| pages.limit() != 0) {
        Some(pages) => Err(Error::invalid(format!(
            "huge pages ({}): a secure VM's memory has none: remove the limit",
            pages.page_size()
        ))),
        None => Ok(()),
    }
}

/// Parses `LinuxResources` of a container in a VM of this size; also returns the CPUs that it may use.
pub(crate) fn parse(json: &[u8], vm: Size) -> Result<(GuestResources, CpuList)> {
    let mut resources: LinuxResources =
        serde_json::from_slice(json).map_err(|e| Error::invalid(format!("resources: {e}")))?;
    let limit = resources.memory().as_ref().and_then(|memory| memory.limit()).unwrap_or(0);
    let mib = u64::try_from(limit).unwrap_or(0).div_ceil(1 << 20);
    if mib > vm.memory_mib.into() {
        return Err(Error::precondition(format!(
            "memory limit of {mib} MiB: the VM has {} MiB, and its size is fixed when it starts: recreate the pod \
             with the new limit",
            vm.memory_mib
        )));
    }
    let cpu = resources.cpu().as_ref();
    let quota = u64::try_from(cpu.and_then(|cpu| cpu.quota()).unwrap_or(0)).unwrap_or(0);
    let period = cpu.and_then(|cpu| cpu.period()).filter(|period| *period > 0).unwrap_or(CPU_PERIOD);
    if quota > period.saturating_mul(vm.vcpus.into()) {
        return Err(Error::precondition(format!(
            "CPU quota of {quota} us in {period} us: the VM has {} CPUs, and their number is fixed when it starts: \
             recreate the pod with the new limit",
            vm.vcpus
        )));
    }
    check_huge_pages(&resources)?;
    let cpus = cpus(Some(&resources))?;
    resources.set_hugepage_limits(None);
    trim(&mut resources);
    Ok((GuestResources(resources), cpus))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;

    const VM: Size = Size { memory_mib: 512, vcpus: 2 };

    fn of(json: &str) -> Result<(GuestResources, CpuList)> {
        parse(json.as_bytes(), VM)
    }

    #[test]
    fn only_what_the_guest_can_change_is_sent() {
        let (sent, cpus) =
            of(r#"{"devices":[{"allow":false,"access":"rwm"}],"pids":{"limit":9},"unified":{"a":"b"},
            "blockIO":{"weight":10},"hugepageLimits":[{"pageSize":"1MB","limit":0}],
            "memory":{"limit":67108864,"swap":67108864},
            "cpu":{"shares":512,"quota":50000,"period":100000,"cpus":"0-3","mems":"0"}}"#)
            .expect("resources");
        assert_eq!(cpus.to_string(), "0-3");
        assert_eq!(
            serde_json::to_string(&sent.0).expect("json"),
            r#"{"memory":{"limit":67108864,"swap":67108864},"cpu":{"shares":512,"quota":50000,"period":100000}}"#
        );
    }

    #[test]
    fn no_limit_is_above_the_size_of_the_vm() {
        for (json, code, text) in [
            (r#"{"memory":{"limit":536870912},"cpu":{"quota":200000,"period":100000}}"#, None, ""),
            (r#"{"memory":{"limit":-1},"cpu":{"quota":-1}}"#, None, ""),
            (
                r#"{"memory":{"limit":536870913}}"#,
                Some(Code::FailedPrecondition),
                "memory limit of 513 MiB: the VM has 512 MiB, and its size is fixed",
            ),
            (
                r#"{"cpu":{"quota":200001}}"#,
                Some(Code::FailedPrecondition),
                "CPU quota of 200001 us in 100000 us: the VM has 2 CPUs, and their number is fixed",
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}]}"#,
                Some(Code::InvalidArgument),
                "huge pages (2MB): a secure VM's memory has none",
            ),
            (
                r#"{"cpu":{"cpus":"0-x"}}"#,
                Some(Code::InvalidArgument),
                "resources.cpu.cpus: list of CPUs: \"0-x\": expected numbers",
            ),
            ("{", Some(Code::InvalidArgument), "resources: EOF while parsing"),
        ] {
            match of(json) {
                Ok(_) => assert_eq!(code, None, "{json}"),
                Err(e) => {
                    assert_eq!(Some(e.code()), code, "{json}");
                    assert!(e.to_string().starts_with(text), "{e}");
                }
            }
        }
    }
}
