//! Every call that we make of the agent, in one table: how long it may take, and whether it is asked
//! again when the connection broke under it.

/// How long a call may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Limit {
    /// Ends when its process does, takes input or gives output, or with the VM: no limit of its own.
    LongPoll,
    /// CreateContainer: mounts, image pulls (`agent.create_timeout_s`).
    Create,
    /// Everything else (`agent.call_timeout_s`).
    Call,
    /// What is asked again every few seconds anyway: as Call, but no longer than `limits::STATS_ANSWER`.
    Poll,
    /// A wait that is asked for again and again (`limits::STUCK_WAIT`).
    Short,
}

macro_rules! methods {
    ($($name:ident: $limit:ident, again: $again:literal;)*) => {
        /// A method of `grpc.AgentService`, by one of its uses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Method { $($name),* }

        impl Method {
            /// Its name in messages.
            pub(crate) fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name)),* }
            }

            pub(crate) fn limit(self) -> Limit {
                match self { $(Self::$name => Limit::$limit),* }
            }

            /// It changes nothing, or can be told to have happened: CreateContainer asked twice would
            /// destroy what runs, WriteStdin asked twice would double the input.
            pub(crate) fn again(self) -> bool {
                match self { $(Self::$name => $again),* }
            }
        }
    };
}

methods! {
    UpdateInterface: Call, again: false;
    UpdateRoutes: Call, again: false;
    AddARPNeighbors: Call, again: false;
    CreateSandbox: Call, again: false;
    GetGuestDetails: Call, again: false;
    CopyFile: Call, again: false;
    CreateContainer: Create, again: false;
    StartContainer: Call, again: false;
    ExecProcess: Call, again: false;
    SignalProcess: Call, again: false;
    WaitProcess: LongPoll, again: true;
    WaitProcessShortly: Short, again: true;
    ReadStdout: LongPoll, again: true;
    ReadStderr: LongPoll, again: true;
    WriteStdin: LongPoll, again: false;
    CloseStdin: Call, again: false;
    TtyWinResize: Call, again: false;
    PauseContainer: Call, again: false;
    ResumeContainer: Call, again: false;
    UpdateContainer: Call, again: true;
    StatsContainer: Poll, again: true;
    RemoveContainer: Call, again: false;
    DestroySandbox: Call, again: false;
    GetOOMEvent: LongPoll, again: true;
}
