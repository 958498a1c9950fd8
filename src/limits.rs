//! Every bound and time limit of the program, each with its reason. What an operator may want to
//! change is in the configuration instead.

/// Ids and foreign text in messages.
pub(crate) mod text {
    /// Longest id taken from outside: containerd's own limit is 76, CRI's ids have 64.
    pub(crate) const ID_BYTES: usize = 128;

    /// The same for an id, which is quoted whole up to here: longer than any that a client sends.
    pub(crate) const QUOTED_ID_CHARS: usize = 80;

    /// Characters of foreign text that an error message quotes to say which value it means.
    pub(crate) const QUOTED_CHARS: usize = 40;

    /// Longest piece of foreign text (agent, QEMU, console) inside one of our messages.
    pub(crate) const FOREIGN_TEXT_BYTES: usize = 4 << 10;

    /// Lines of a tail that a message quotes; and the characters of one line of QEMU's or the guest's.
    pub(crate) const QUOTED_LINES: usize = 3;
    pub(crate) const QUOTED_LINE_CHARS: usize = 300;

    /// Lines of a tail that are looked through for a known failure: one is seldom among the last three.
    pub(crate) const SEARCHED_LINES: usize = 40;

    /// Largest text `kata-se explain` looks through: the log of a busy hour.
    pub(crate) const EXPLAINED_BYTES: u64 = 16 << 20;
}

/// What a bundle or a pod's configuration may hold.
pub(crate) mod spec {
    /// Largest `config.json` read from a bundle: real ones have 10 to 100 KiB.
    pub(crate) const SPEC_BYTES: u64 = 4 << 20;

    /// Mounts of one container: kubelet's pods have some twenty.
    pub(crate) const SPEC_MOUNTS: usize = 1024;

    /// Arguments and environment of one process: the kernel itself ends at 2 MiB on a usual stack.
    pub(crate) const PROCESS_BYTES: usize = 2 << 20;

    /// Longest host name a kernel accepts.
    pub(crate) const HOSTNAME_BYTES: usize = 64;

    /// CPUs that can be named: what `sched_setaffinity` accepts through the C library; s390x kernels have 512.
    pub(crate) const CPUS: usize = 1024;

    /// Layers of one rootfs: Docker's images end at 127, and mount(2) takes the names of some 210 descriptors.
    pub(crate) const ROOTFS_LAYERS: usize = 200;

    /// Longest name of an image that a guest pulls: a repository's ends at 255 bytes, a tag at 128, a digest at 135.
    pub(crate) const IMAGE_NAME_BYTES: usize = 1024;

    /// Largest volume of a snapshotter that leaves the image to the guest: CRI-O's has all annotations of the pod,
    /// of which Kubernetes allows 256 KiB, in base64.
    pub(crate) const PULL_VOLUME_BYTES: usize = 512 << 10;

    /// Largest resolv.conf: the kubelet's own has some hundred bytes.
    pub(crate) const RESOLV_CONF_BYTES: u64 = 64 << 10;

    /// Largest /etc/hosts of the node: some have long lists of names.
    pub(crate) const HOSTS_BYTES: u64 = 1 << 20;
}

/// What a pod brings for its guest in annotations.
pub(crate) mod guest_data {
    /// Longest annotation with initdata: Kubernetes ends at 256 KiB for all annotations of a pod, and an OCI spec
    /// at `spec::SPEC_BYTES`.
    pub(crate) const INITDATA_TEXT_BYTES: usize = 2 << 20;

    /// Largest initdata when it is unpacked: generated policies have some hundred KiB, and gzip makes a thousandth of
    /// what is made to be large.
    pub(crate) const INITDATA_BYTES: usize = 4 << 20;

    /// Its tokens, a document being one: six for each name with a text, and each takes some hundred bytes when it is
    /// parsed.
    pub(crate) const INITDATA_TOKENS: usize = 10_000;

    /// A policy as the guest's agent reads it (its engine's limits: 64 KiB a line, 200,000 lines); all of it has to
    /// fit into one message of ttrpc, which ends at 4 MiB.
    pub(crate) const POLICY_BYTES: usize = (4 << 20) - (4 << 10);
    pub(crate) const POLICY_LINE_BYTES: usize = 64 << 10;
    pub(crate) const POLICY_LINES: usize = 200_000;

    /// Unknown annotations that are told of one pod.
    pub(crate) const IGNORED_ANNOTATIONS: usize = 16;
}

/// Files, locks, cgroups and networks of the host.
pub(crate) mod host {
    use std::time::Duration;

    /// Largest configuration file or drop-in.
    pub(crate) const CONFIG_BYTES: u64 = 1 << 20;

    /// Largest file of the kernel read for a fact: /proc/cpuinfo of the largest machine has some 60 KiB.
    pub(crate) const FACT_BYTES: u64 = 1 << 20;

    /// Largest list of users (passwd(5)).
    pub(crate) const USER_LIST_BYTES: u64 = 16 << 20;

    /// Largest accounting file of a cgroup: `io.stat` has a line of 100 bytes for each disk of the host.
    pub(crate) const CGROUP_BYTES: u64 = 1 << 20;

    /// Notes about images whose content was verified: more than a node has sealed and container images.
    pub(crate) const VERIFIED_NOTES: usize = 1024;

    /// Pause between two tries for the lock of an image's layers, while another pod packs them.
    pub(crate) const LAYERS_PAUSE: Duration = Duration::from_millis(20);

    /// Largest sandbox record read back: quoted console lines are the most of it.
    pub(crate) const RECORD_BYTES: u64 = 1 << 20;

    /// Largest journal read back: a pod has some ten lines of 100 bytes each.
    pub(crate) const JOURNAL_BYTES: u64 = 1 << 20;

    /// Largest log file in the sandbox directory; the older half is cut off when it is reached.
    pub(crate) const LOG_FILE_BYTES: u64 = 1 << 20;

    /// Longest log line.
    pub(crate) const LOG_LINE_BYTES: usize = 8 << 10;

    /// Log lines from one place of the source in a second: a pod that starts hundred execs at once has that
    /// many.
    pub(crate) const LOG_LINES_A_SECOND: u32 = 100;

    /// Pause between two tries for a folder's lock.
    pub(crate) const LOCK_PAUSE: Duration = Duration::from_millis(2);

    /// How often a lock file may be replaced under us: a shim that ends removes it once.
    pub(crate) const LOCK_TRIES: usize = 100;

    /// Pause between two looks at a cgroup whose processes are ending.
    pub(crate) const CGROUP_PAUSE: Duration = Duration::from_millis(5);

    /// How often the threads of a process are listed until none is new (QEMU starts a few more with each busy
    /// disk), or the processes of a cgroup until it is empty (a program may start another one meanwhile).
    pub(crate) const PROCESS_SCANS: usize = 10;

    /// Bytes of a disk that packing leaves free at most, and the entries of an image's layers: the largest public
    /// images have some hundred thousand files.
    pub(crate) const LAYERS_RESERVE: u64 = 2 << 30;
    pub(crate) const LAYER_FILES: u64 = 10_000_000;

    /// Largest file that says how much room an image has: one number.
    pub(crate) const ROOM_BYTES: u64 = 32;

    /// Packing one image: mkfs writes 100 MiB a second and more, and no caller of Create waits for longer.
    pub(crate) const PACKING: Duration = Duration::from_secs(600);

    /// For how long an undo waits for what was begun before it: system calls, QMP, none of which takes a second.
    pub(crate) const BEGUN_WORK: Duration = Duration::from_secs(30);

    /// Time for one step of the cleanup (a cgroup's removal, one unmount), but for the end of QEMU: that has
    /// `qemu::QEMU_EXIT`.
    pub(crate) const CLEANUP_STEP: Duration = Duration::from_secs(10);

    /// All netlink work of one visit to a namespace: milliseconds.
    pub(crate) const NETLINK: Duration = Duration::from_secs(10);

    /// Interfaces, addresses, routes and neighbours taken from a pod's network namespace, each.
    pub(crate) const NETWORK_ITEMS: usize = 256;

    /// What a program answers to `--version` or with its help, and how long that takes: the longest list, QEMU's
    /// devices, has 20 KiB and takes a tenth of a second.
    pub(crate) const ANSWER_BYTES: u64 = 64 << 10;
    pub(crate) const ANSWER: Duration = Duration::from_secs(5);

    /// Descriptors that a shim must be able to have: an idle pod has some 30, each process up to 12, and each
    /// connection 2. systemd's default is 524288.
    pub(crate) const DESCRIPTORS: u64 = 256;

    /// Random guest CIDs that are tried: of four billion hardly one is in use.
    pub(crate) const VSOCK_CID_TRIES: usize = 100;

    /// Connections of port forwarding at once; more wait. A browser opens six.
    pub(crate) const FORWARDED_CONNECTIONS: usize = 64;

    /// How long the guest may take to answer one, and the pause after none could be taken.
    pub(crate) const FORWARD_CONNECT: Duration = Duration::from_secs(5);
    pub(crate) const FORWARD_PAUSE: Duration = Duration::from_secs(1);
}

/// Sealed images and the documents that they are sealed with.
pub(crate) mod image {
    /// Largest host key document or certificate file: one has 2 KiB, a bundle a few more.
    pub(crate) const CERTIFICATE_BYTES: u64 = 1 << 20;

    /// Largest revocation list: those of public authorities have some hundred KiB.
    pub(crate) const REVOCATION_LIST_BYTES: u64 = 16 << 20;

    /// Most certificates or revocation lists taken from one file.
    pub(crate) const PEM_BLOCKS: usize = 64;

    /// Host keys that one message lists: an image for more machines is rare, and the rest is counted.
    pub(crate) const LISTED_KEYS: usize = 4;

    /// Bytes of an image read and hashed at once, large enough for a disk and small enough for the CPU's
    /// cache; and how many such chunks are in flight between reading and hashing.
    pub(crate) const DIGEST_CHUNK_BYTES: usize = 256 << 10;
    pub(crate) const DIGEST_CHUNKS: usize = 4;
}

/// QEMU, QMP and the vsock program.
pub(crate) mod qemu {
    use std::time::Duration;

    /// Longest QMP line: `query-qmp-schema`, which we never ask for, would be the longest at 200 KiB.
    pub(crate) const QMP_LINE_BYTES: usize = 1 << 20;

    /// Bytes that QEMU may send over QMP in a second: an honest one sends some hundred.
    pub(crate) const QMP_BYTES_PER_SECOND: usize = 4 << 20;

    /// QEMU answers QMP commands within milliseconds; a plug can take longer on a loaded machine.
    pub(crate) const QMP_ANSWER: Duration = Duration::from_secs(10);

    /// After the end of the QMP connection, time for QEMU to end by itself, which closes it, before it is killed.
    pub(crate) const QMP_LOST: Duration = Duration::from_secs(2);

    /// From QMP's `device_del` to the DEVICE_DELETED event: 60 ms measured.
    pub(crate) const DEVICE_DELETED: Duration = Duration::from_secs(5);

    /// After SIGKILL, in a Stop, an undo and `delete`: a protected guest's memory is cleared page by page, which
    /// takes seconds for a large one (IBM: "Improved reboot and shutdown time"; QEMU c891c24b1a4f, "os-posix:
    /// asynchronous teardown for shutdown on Linux"). No figure is published: this is many times as much.
    pub(crate) const QEMU_EXIT: Duration = Duration::from_secs(60);

    /// From QMP's `quit` to SIGKILL: QEMU ends within some ten milliseconds.
    pub(crate) const QEMU_QUIT: Duration = Duration::from_secs(2);

    /// After QEMU's end, time to read what is left in the pipes of its stderr and console.
    pub(crate) const QEMU_OUTPUT_DRAIN: Duration = Duration::from_secs(1);

    /// After a failed QMP command, time for QEMU's end to be known, which then is the reason of the failure.
    pub(crate) const QEMU_END_KNOWN: Duration = Duration::from_secs(3);

    /// Kept tail of QEMU's stderr and of the guest console, each.
    pub(crate) const TAIL_BYTES: usize = 64 << 10;

    /// How long a guest may take for its own end (DestroySandbox powers it off: 0.3 s measured).
    pub(crate) const GUEST_POWER_OFF: Duration = Duration::from_secs(5);

    /// The same for a guest whose agent ended before it could answer: its kernel is powering off already.
    pub(crate) const POWER_OFF_WITHOUT_ANSWER: Duration = Duration::from_millis(500);

    /// From the start of the vsock device to its socket: milliseconds; and the pause between two looks for it.
    pub(crate) const VSOCK_DEVICE_READY: Duration = Duration::from_secs(10);
    pub(crate) const VSOCK_DEVICE_PAUSE: Duration = Duration::from_millis(2);

    /// Quoted output of a vsock device that failed.
    pub(crate) const VSOCK_DEVICE_OUTPUT_BYTES: usize = 1000;

    /// Longest name of an extension image: virtio-blk shows 20 bytes of a serial, of which `extension-` takes 10.
    pub(crate) const EXTENSION_NAME_BYTES: usize = 10;

    /// Longest path of a Unix socket: `sun_path` of the kernel has 108 bytes with the NUL.
    pub(crate) const SOCKET_PATH_BYTES: usize = 107;
}

/// Calls to the agent, and what it may answer.
pub(crate) mod agent {
    use std::time::Duration;

    /// One attempt to connect to the agent, the first and the longest: before the guest listens, a hybrid socket
    /// may say nothing; a guest on a machine that is overloaded may need longer for its first answer.
    pub(crate) const DIAL_TRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(5));

    /// First and longest pause between two attempts to connect to the agent.
    pub(crate) const DIAL_PAUSE: (Duration, Duration) =
        (Duration::from_millis(10), Duration::from_millis(100));

    /// Longest answer of a hybrid vsock socket (`OK <port>`).
    pub(crate) const HYBRID_ANSWER_BYTES: usize = 64;

    /// By how much at most ttrpc's own limit of a call, after which it takes the connection for broken, is longer
    /// than ours.
    pub(crate) const CALL_SLACK: Duration = Duration::from_secs(1);

    /// Largest answer to a call: the error of a denied one is the largest honest one. It has all that the policy's
    /// rules have printed, the request several times; 124 KiB were seen of a small container.
    pub(crate) const ANSWER_BYTES: u32 = 512 << 10;

    /// Characters of one of the agent's details (version, storage drivers), and how many drivers are taken.
    pub(crate) const GUEST_DETAIL_CHARS: usize = 64;
    pub(crate) const GUEST_DETAILS: usize = 64;

    /// The guest's answer to a question for statistics, which the kubelet asks every ten seconds: those of a
    /// guest that does not answer must not pile up.
    pub(crate) const STATS_ANSWER: Duration = Duration::from_secs(10);

    /// Disks in one container's statistics; a pod has some ten.
    pub(crate) const STATS_DISKS: usize = 64;

    /// Tasks a guest can say it has: the kernel's own largest `pid_max`.
    pub(crate) const GUEST_TASKS: u64 = 4 << 20;

    /// The agent's own limit for removing a container.
    pub(crate) const REMOVE_CONTAINER: Duration = Duration::from_secs(10);

    /// The agent's answer to SignalProcess: milliseconds; after this a KILL of the sandbox kills the VM.
    pub(crate) const KILL_ANSWER: Duration = Duration::from_secs(10);

    /// A Kill of a container that is still being created waits this long for it.
    pub(crate) const KILL_OF_CREATING: Duration = Duration::from_secs(60);

    /// How long the exit of a container that was killed waits for the guest's report of an OOM, which comes
    /// some milliseconds later (in emulation some ten).
    pub(crate) const OOM_REPORT: Duration = Duration::from_secs(1);

    /// Pause between two log lines while the guest pulls an image.
    pub(crate) const PULL_PROGRESS: Duration = Duration::from_secs(15);

    /// Longest termination message of a container: what Kubernetes takes of it.
    pub(crate) const TERMINATION_MESSAGE_BYTES: usize = 4096;

    /// How long the exit of a container waits for its termination message: the kubelet reads it after the exit.
    pub(crate) const TERMINATION_MESSAGE: Duration = Duration::from_secs(5);

    /// Pause between two OOM events: a guest cannot flood containerd with them.
    pub(crate) const OOM_EVENT_PAUSE: Duration = Duration::from_millis(100);

    /// Pause between two tries to end what the guest may have made by a call that it has not answered.
    pub(crate) const UNANSWERED_PAUSE: Duration = Duration::from_secs(1);

    /// Pause after a failed poll for OOM events.
    pub(crate) const OOM_POLL_PAUSE: Duration = Duration::from_secs(10);
}

/// The streams of processes.
pub(crate) mod stdio {
    use std::time::Duration;

    /// Bytes asked for with one ReadStdout or ReadStderr.
    pub(crate) const READ_BYTES: u32 = 64 << 10;

    /// Bytes of one stream held for a sink that is slow, beside the last answer and what is being written:
    /// 208 KiB in all.
    pub(crate) const STREAM_BUFFER: usize = 128 << 10;

    /// First and longest pause between two looks whether the output of a process that has ended is read.
    pub(crate) const LINGER_PAUSE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(1));

    /// Bytes given to a sink at once.
    pub(crate) const SINK_BYTES: usize = 16 << 10;

    /// Opening a file for output: a file system of a network may hang.
    pub(crate) const OPEN_FILE: Duration = Duration::from_secs(10);

    /// Bytes sent with one WriteStdin.
    pub(crate) const WRITE_BYTES: usize = 32 << 10;

    /// How long a process' end may wait for a reader that does not take its output.
    pub(crate) const OUTPUT_DRAIN: Duration = Duration::from_secs(10);

    /// One WaitProcess for a process whose output has no reader, and the pause before the next: what it writes
    /// while one is under way would be lost if it ended then.
    pub(crate) const STUCK_WAIT: Duration = Duration::from_millis(50);
    pub(crate) const STUCK_PAUSE: Duration = Duration::from_secs(1);

    /// Pause between two reads of a stream that answered empty: first and longest.
    pub(crate) const EMPTY_READ_PAUSE: (Duration, Duration) =
        (Duration::from_millis(20), Duration::from_secs(1));

    /// A stream of a process that was killed is at its end when nothing came for this long: a child in the
    /// background may hold it open for ever.
    pub(crate) const KILLED_SILENCE: Duration = Duration::from_secs(1);
}

/// Volumes that are copied into the guest, and those that are disks.
pub(crate) mod volumes {
    use std::time::Duration;

    /// Raw block volumes of one container: a pod has a few, a privileged container all devices of its host.
    pub(crate) const BLOCK_DEVICES: usize = 256;

    /// Smallest disk of an emptyDir: a file system with the sums of an encrypted disk needs some MiB.
    pub(crate) const SMALLEST_DISK: u64 = 16 << 20;

    /// Volumes of one container that are copied into its guest: kubelet's pods have some ten.
    pub(crate) const COPIED_VOLUMES: usize = 256;

    /// How deep the folders of a copied volume may be nested.
    pub(crate) const COPIED_DEPTH: usize = 32;

    /// Bytes sent with one CopyFile: a message of ttrpc ends at 4 MiB.
    pub(crate) const COPY_PIECE: usize = 1 << 20;

    /// A file that changes while it is copied is begun again this often, and so is a volume.
    pub(crate) const COPY_TRIES: u32 = 3;

    /// Files and folders of one pod that are watched: its containers have some ten each.
    pub(crate) const WATCHES: usize = 1024;

    /// A volume is looked at when nothing in it has changed for so long, at most so long after its first change: the
    /// kubelet's own update takes some milliseconds.
    pub(crate) const SETTLING: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(500));

    /// Pause between two updates of a volume, at least so long and so many times as long as the last one took: updates
    /// never take more than a fifth of the pod's time.
    pub(crate) const UPDATE_PAUSE: (Duration, u32) = (Duration::from_millis(250), 4);

    /// Old revisions of a volume that are kept whole in the guest: a reader may still be in the one before.
    pub(crate) const WHOLE_REVISIONS: usize = 2;

    /// The same while the guest does not remove them; then no more are sent.
    pub(crate) const STUCK_REVISIONS: usize = 32;

    /// Revisions of a volume in one container: an empty file of the guest's memory stays of each. A service account's
    /// token has some ten thousand in a year.
    pub(crate) const REVISIONS: usize = 20_000;
}

/// The shim's commands, its server and its events.
pub(crate) mod shim {
    use std::time::Duration;

    /// Largest input taken on stdin by `start`: runtime options or bootstrap parameters.
    pub(crate) const START_INPUT_BYTES: u64 = 1 << 20;

    /// A Shutdown waits this long for the monitors of processes to tell their ends: milliseconds.
    pub(crate) const EXITS_TOLD: Duration = Duration::from_secs(1);

    /// After a panic, time for what was begun to be given up, which takes milliseconds: the task that has panicked
    /// never is.
    pub(crate) const PANIC_GRACE: Duration = Duration::from_secs(1);

    /// The `start` command waits this long for an older shim of the same sandbox that is on its way out.
    pub(crate) const START_GRACE: Duration = Duration::from_secs(1);

    /// The `delete` command waits this long for a shim that still lives before it kills it.
    pub(crate) const DELETE_GRACE: Duration = Duration::from_secs(2);

    /// A shim whose last container was deleted ends by itself after this: callers send Shutdown at once.
    pub(crate) const ORPHAN_TIMEOUT: Duration = Duration::from_secs(10);

    /// One whose first container never came: callers send Create at once, also on a machine that stalls.
    pub(crate) const UNUSED_TIMEOUT: Duration = Duration::from_secs(600);

    /// Events waiting for containerd: about 10 minutes of a busy pod.
    pub(crate) const EVENT_QUEUE: usize = 4096;

    /// Calls to containerd's event service.
    pub(crate) const EVENT_SEND: Duration = Duration::from_secs(5);

    /// Pause before an event is sent again: first and longest.
    pub(crate) const EVENT_RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

    /// The same for the last events: when all is well, and when containerd is still starting.
    pub(crate) const EVENT_FLUSH: Duration = Duration::from_millis(200);
    pub(crate) const EVENT_FLUSH_LATE: Duration = Duration::from_secs(8);

    /// How long a caller may take to close its connection after the last answer to it.
    pub(crate) const CLIENT_HANGUP: Duration = Duration::from_millis(300);

    /// Pause after a connection could not be accepted: it stays in the queue, and so does the reason for a
    /// moment.
    pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

    /// At the shim's end, time for the last answers to leave.
    pub(crate) const SERVER_SHUTDOWN: Duration = Duration::from_secs(2);
}
