//! Task.Create: the pod's first container brings its VM up; every container is then made in the
//! guest, stopped before its first instruction.
//!
//! Create can be cancelled (Delete, Shutdown) at any await; everything it made is undone before it
//! answers, so that the same id can be created again at once.

use std::path::Path;
use std::sync::Arc;

use slog::{info, warn};

use crate::error::{Code, Context, Error, Result};
use crate::failpoint::{Step, hit};
use crate::host::begun;
use crate::host::files;
use crate::host::log::ms;
use crate::host::netns;
use crate::ids::ProcessId;
use crate::lifecycle::process::Input;
use crate::lifecycle::vm::{VmInput, VmPhase};
use crate::limits;
use crate::oci::device;
use crate::oci::guest_spec::guest_spec;
use crate::oci::pod_spec::PodSpec;
use crate::oci::role::Role;
use crate::oci::spec::{self, Bundle};
use crate::oci::storage::Storage;
use crate::oci::termination;
use crate::oci::unsupported;
use crate::pod::guest::Guest;
use crate::pod::launch;
use crate::pod::request::CreateRequest;
use crate::pod::scheduling;
use crate::pod::state::Container;
use crate::pod::{Pod, prepare, stop};
use crate::task::disks;
use crate::task::pull;
use crate::task::rootfs::{self, Rootfs};
use crate::task::unanswered::Call;
use crate::task::volumes;

impl Pod {
    /// Makes a container and answers the VM's process id.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateRequest) -> Result<u32> {
        let began = tokio::time::Instant::now();
        let config = request.bundle.join("config.json");
        let mut bundle = spec::parse(&files::read_bounded(&config, limits::spec::SPEC_BYTES)?, &request.id)?;
        self.join_sandbox(&mut bundle);
        self.admit(&request, &bundle)?;
        let id = ProcessId::init(request.id.clone());
        let mut cancel = match self.lock().container(&request.id) {
            Ok(container) => container.cancel.subscribe(),
            Err(e) => return Err(e),
        };
        let made = tokio::select! {
            made = self.make(&request, &bundle) => made,
            _ = cancel.wait_for(|asked| *asked) => {
                Err(cancelled())
            }
        };
        let pid = match made.and_then(|()| self.created(&id)) {
            Ok(pid) => pid,
            Err(e) => {
                let e = e.context(format!("create {id}"));
                warn!(self.log(), "{}", e);
                self.undo_create(&id, &bundle.role, &e).await;
                return Err(e);
            }
        };
        scheduling::update_affinity(self);
        info!(self.log(), "created {}", id; "ms" => ms(began.elapsed()));
        Ok(pid)
    }

    /// Checks that the container may be made now, and takes its place.
    fn admit(&self, request: &CreateRequest, bundle: &Bundle) -> Result<()> {
        let id = &request.id;
        let mut state = self.lock();
        if !state.is_serving() {
            return Err(Error::precondition(format!("container {id}: the pod's shim is shutting down")));
        }
        if state.containers.contains_key(id) {
            return Err(Error::already_exists(format!("container {id}: exists already in this pod")));
        }
        let sandbox = bundle.role.sandbox(id);
        if sandbox != self.parts.sandbox {
            return Err(Error::invalid(format!(
                "container {id}: belongs to sandbox {sandbox}, this shim serves sandbox {}",
                self.parts.sandbox
            )));
        }
        let cpus = bundle.cpus().with_context(|| format!("container {id}"))?;
        let first = !matches!(bundle.role, Role::Member { .. });
        if first && state.sandbox.is_some() {
            return Err(Error::precondition(format!(
                "container {id}: sandbox {sandbox} was made by the Sandbox API and has no container of its own"
            )));
        }
        match (state.vm.guest(), first) {
            (Some(guest), false) if guest.is_unusable(id) => {
                return Err(Error::precondition(format!(
                    "container {id}: its creation failed before in this guest, which cannot take the id again: \
                     use another id or restart the pod"
                )));
            }
            (Some(_), false) => {}
            (None, false) => {
                return Err(Error::precondition(format!("container {id}: sandbox {sandbox} is not running")));
            }
            (_, true) if state.vm.is_free() => state.vm.advance(VmInput::BootAsked)?,
            (_, true) => {
                return Err(Error::precondition(format!("container {id}: the sandbox is already running")));
            }
        }
        state.used = true;
        let mut container = Container::creating(request, bundle.role == Role::Sandbox, cpus);
        container.message = termination::message_file(bundle).map(Path::to_path_buf);
        state.containers.insert(id.clone(), container);
        Ok(())
    }

    async fn make(self: &Arc<Self>, request: &CreateRequest, bundle: &Bundle) -> Result<()> {
        unsupported::check(bundle, netns::is_the_hosts)?;
        let devices = device::block_devices(&bundle.spec)?;
        disks::look(&devices).await?;
        let mut volumes = volumes::place(bundle, &request.id).await?;
        let (guest, root) = match bundle.role {
            Role::Member { .. } => self.guest_with(request, bundle).await?,
            Role::Single | Role::Sandbox => self.boot(request, bundle).await?,
        };
        hit(Step::LayersPacked)?;
        let copied = self.copy_volumes(&guest, &request.id, &volumes.copies).await?;
        hit(Step::VolumesCopied)?;
        let shared_pid = self.shares_pids(&request.id, bundle);
        let (guest, id) = (&guest, &request.id);
        let disks = disks::attach(self, guest, id, &devices, &volumes.empty_dirs).await?;
        disks::tell_owners(self, guest, id, bundle.uid(), &volumes.empty_dirs);
        disks.place_empty_dirs(guest, &self.parts.sandbox, &mut volumes)?;
        let spec = guest_spec(bundle, id, &request.bundle, volumes.mounts);
        let spec = if guest.seccomp { spec.with_seccomp(bundle) } else { spec };
        let create = async |storages: Vec<Storage>, pulls| {
            let storages = [storages, volumes.storages].concat();
            let devices = disks.devices(&devices);
            guest.mark_unusable(id);
            let made = guest.agent.create_container(id, &storages, &devices, &spec, shared_pid, pulls).await;
            made.map_err(|e| disks.explain(e))?;
            guest.mark_usable(id);
            Ok(())
        };
        match root {
            Rootfs::Pulled(image) => {
                let storage = rootfs::pulled(guest, id, bundle, &image)?;
                if bundle.role == Role::Sandbox {
                    create(vec![storage], false).await?; // of the guest's own pause bundle
                } else {
                    pull::watched(self.log(), guest, &image, create(vec![storage], true)).await?;
                }
            }
            Rootfs::Disk(disk) => {
                rootfs::attach(self, guest, id, disk, |storages| create(storages, false)).await?;
            }
        }
        disks.keep(self, guest, id);
        self.keep_volumes(guest, id, copied)?;
        hit(Step::ContainerMade)
    }

    /// The pod's guest, and the root file system of a further container.
    async fn guest_with(&self, request: &CreateRequest, bundle: &Bundle) -> Result<(Arc<Guest>, Rootfs)> {
        let guest = self.guest()?;
        let plan = rootfs::plan(&guest.config, request, bundle)?;
        let dir = &self.parts.dir;
        let root = rootfs::open(self.log(), &plan, &guest.config, dir, &guest.leaf, guest.user).await?;
        Ok((guest, root))
    }

    /// The VM boots while the first container's layers are packed.
    async fn boot(
        self: &Arc<Self>,
        request: &CreateRequest,
        bundle: &Bundle,
    ) -> Result<(Arc<Guest>, Rootfs)> {
        let spec = PodSpec::of_bundle(bundle)?;
        let context = prepare::prepare(self, request.config_path.as_deref(), &spec).await?;
        let plan = rootfs::plan(&context.config, request, bundle)?;
        let opening =
            rootfs::open(self.log(), &plan, &context.config, &self.parts.dir, &context.leaf, context.user);
        let (guest, root) = tokio::try_join!(launch::launch(self, &context, &spec), opening)?;
        Ok((launch::publish_guest(self, guest)?, root))
    }

    /// The container is Created, unless its VM has ended or its Create was cancelled after the guest's answer: who
    /// does either of them leaves a container that is Creating to its Create.
    fn created(&self, id: &ProcessId) -> Result<u32> {
        let mut state = self.lock();
        if *state.container(&id.container)?.cancel.borrow() {
            return Err(cancelled());
        }
        if state.vm.phase() != VmPhase::Up {
            let end = state.vm.guest().and_then(|guest| guest.vm.gone().borrow().clone());
            return Err(Error::unavailable(end.map_or("its VM has ended".to_owned(), |end| end.to_string())));
        }
        self.advance_in(&mut state, id, Input::CreateDone, |_| ())?;
        Ok(state.vm.pid())
    }

    /// Returns when nothing is left of it: what it was doing when it was cancelled is waited for.
    async fn undo_create(self: &Arc<Self>, id: &ProcessId, role: &Role, e: &Error) {
        if !matches!(role, Role::Member { .. }) {
            stop::undo_boot(self).await;
        } else if let Ok(guest) = self.guest() {
            let ended = begun::ended(limits::host::BEGUN_WORK).await;
            let freed = self.free_in_guest(&guest, &id.container).await;
            for e in [ended, freed].into_iter().filter_map(Result::err) {
                warn!(self.log(), "after a failed creation of {}: {}", id, e);
            }
            if guest.is_unusable(&id.container) {
                Call::Create.undo(e, self, &guest, id);
            }
        }
        self.lock().containers.remove(&id.container);
        self.container_removed.notify_one();
    }
}

fn cancelled() -> Error {
    Error::new(Code::Cancelled, "cancelled: the container was deleted while it was being created")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ContainerId;
    use crate::lifecycle::process::Phase;
    use crate::plan::cpus::CpuList;
    use crate::pod::request::StdioPaths;

    /// A container that the guest has just made.
    fn made(pod: &Pod, id: &str) -> ProcessId {
        let id = ContainerId::parse(id).expect("id");
        let request = CreateRequest {
            id: id.clone(),
            bundle: "/b".into(),
            rootfs: Vec::new(),
            stdio: StdioPaths::default(),
            config_path: None,
        };
        let container = Container::creating(&request, false, CpuList::default());
        pod.lock().containers.insert(id.clone(), container);
        ProcessId::init(id)
    }

    #[test]
    fn no_container_is_created_in_a_vm_that_has_ended_or_after_it_was_cancelled() {
        let dir = tempfile::tempdir().expect("dir");
        let pod = Pod::in_dir(dir.path());
        for input in [VmInput::BootAsked, VmInput::BootDone] {
            pod.lock().vm.advance(input).expect("boot");
        }
        let [first, second, third] = ["c1", "c2", "c3"].map(|id| made(&pod, id));
        assert_eq!(pod.created(&first), Ok(0));
        assert_eq!(pod.lock().process(&first).map(|p| p.phase()), Ok(Phase::Created));
        pod.lock().container(&second.container).expect("known").cancel.send_replace(true);
        assert_eq!(pod.created(&second).expect_err("cancelled").code(), Code::Cancelled);
        pod.lock().vm.advance(VmInput::VmEnded).expect("end");
        let e = pod.created(&third).expect_err("ended");
        assert_eq!((e.code(), e.to_string().as_str()), (Code::Unavailable, "its VM has ended"));
        for id in [&second, &third] {
            assert_eq!(pod.lock().process(id).map(|p| p.phase()), Ok(Phase::Creating));
        }
    }
}
