//! The agent's methods that we call, in one table: how long a call may take, and whether it is repeated
//! after a lost connection.

/// How long a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// No limit: ends when its process ends, takes input or writes output, or with the VM.
    LongPoll,
    /// CreateContainer: mounts (`agent.create_timeout_s`).
    Create,
    /// CreateContainer in which the guest pulls the image (`agent.image_pull_timeout_s`).
    Pull,
    /// Everything else (`agent.call_timeout_s`).
    Call,
    /// As Call, but at most `limits::agent::STATS_ANSWER`: callers ask again every few seconds anyway.
    Poll,
    /// One of a series of short waits (`limits::stdio::STUCK_WAIT`).
    Short,
}

macro_rules! methods {
    ($($name:ident $(as $method:literal)?: $limit:ident, repeat: $repeat:literal;)*) => {
        /// A method of `grpc.AgentService`; one that has two kinds of use is listed twice.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Method { $($name),* }

        impl Method {
            /// The name in messages.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => methods!(@name $name $($method)?)),* }
            }

            pub(crate) fn limit(self) -> Limit {
                match self { $(Self::$name => Limit::$limit),* }
            }

            /// Whether a second call does no harm: CreateContainer called twice would destroy what runs,
            /// WriteStdin called twice would double the input.
            pub(crate) fn is_repeatable(self) -> bool {
                match self { $(Self::$name => $repeat),* }
            }
        }
    };
    (@name $name:ident) => { stringify!($name) };
    (@name $name:ident $method:literal) => { $method };
}

methods! {
    SetPolicy: Call, repeat: false;
    UpdateInterface: Call, repeat: false;
    UpdateRoutes: Call, repeat: false;
    AddARPNeighbors: Call, repeat: false;
    CreateSandbox: Call, repeat: false;
    GetGuestDetails: Call, repeat: false;
    CopyFile: Call, repeat: false;
    CreateContainer: Create, repeat: false;
    CreateContainerAndPull as "CreateContainer": Pull, repeat: false;
    StartContainer: Call, repeat: false;
    ExecProcess: Call, repeat: false;
    SignalProcess: Call, repeat: false;
    WaitProcess: LongPoll, repeat: true;
    WaitProcessShortly: Short, repeat: true;
    ReadStdout: LongPoll, repeat: true;
    ReadStderr: LongPoll, repeat: true;
    WriteStdin: LongPoll, repeat: false;
    CloseStdin: Call, repeat: false;
    TtyWinResize: Call, repeat: false;
    PauseContainer: Call, repeat: false;
    ResumeContainer: Call, repeat: false;
    UpdateContainer: Call, repeat: true;
    StatsContainer: Poll, repeat: true;
    RemoveContainer: Call, repeat: false;
    DestroySandbox: Call, repeat: false;
    GetOOMEvent: LongPoll, repeat: true;
    GetDiagnosticData: Poll, repeat: true;
}
