//! The connection to the agent and what may happen to a call: its limit, a lost connection, the VM's end.
//!
//! Every call goes through [`Agent::call`], so that none can hang.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use slog::Logger;
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use ttrpc::r#async::Client;
use ttrpc::context::Context as Metadata;

use crate::agent::denials::{self, Denials};
use crate::agent::guard::Guard;
use crate::agent::messages::agent_ttrpc::AgentServiceClient;
use crate::agent::messages::health::CheckRequest;
use crate::agent::messages::health_ttrpc::HealthClient;
use crate::agent::methods::{Limit, Method};
use crate::agent::transport::{self, Transport};
use crate::config::AgentConfig;
use crate::error::{Code, Error, Result, one_line};
use crate::lifecycle::vm::VmEnd;
use crate::limits;
use crate::mutex::lock;

/// The connection to one guest's agent; clones share it.
#[derive(Clone)]
pub struct Agent {
    inner: Arc<Inner>,
}

struct Inner {
    transport: Transport,
    guard: Guard,
    config: AgentConfig,
    gone: watch::Receiver<Option<VmEnd>>,
    service: Mutex<Connected>,
    /// Held while reconnecting.
    reconnecting: tokio::sync::Mutex<()>,
    /// Notified when there is reason for a health check.
    suspected: Notify,
    denials: Denials,
}

#[derive(Clone)]
struct Connected {
    client: AgentServiceClient,
    health: HealthClient,
    /// Counts connections: a lost one that was replaced already is not replaced again.
    number: u64,
}

impl std::fmt::Debug for Agent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Agent").field(&self.inner.transport).finish()
    }
}

impl Agent {
    /// Tries to connect until the agent answers a health check, within `config.connect_timeout`.
    pub async fn connect(
        transport: Transport,
        config: AgentConfig,
        gone: watch::Receiver<Option<VmEnd>>,
    ) -> Result<Self> {
        let limit = (config.connect_timeout, "connect_timeout_s");
        let guard = Guard::default();
        let (client, health) = transport::connect(&transport, &guard, limit, gone.clone(), checked).await?;
        let service = Mutex::new(Connected { client, health, number: 0 });
        let reconnecting = tokio::sync::Mutex::new(());
        let (suspected, denials) = (Notify::new(), Denials::default());
        Ok(Self {
            inner: Arc::new(Inner {
                transport,
                guard,
                config,
                gone,
                service,
                reconnecting,
                suspected,
                denials,
            }),
        })
    }

    /// From now on calls that the guest's policy denies are logged, each kind of call once.
    pub(crate) fn log_denials(&self, log: Logger) {
        self.inner.denials.log_to(log);
    }

    /// Reports that the agent seems dead: a call was not answered in time.
    pub(crate) fn suspect(&self) {
        self.inner.suspected.notify_one();
    }

    /// Returns when the agent has broken the protocol: its VM is to be ended.
    pub(crate) async fn broken(&self) -> Error {
        self.inner.guard.broken().await
    }

    /// Waits until the agent seems dead.
    pub(crate) async fn suspected(&self) {
        self.inner.suspected.notified().await;
    }

    /// Checks the agent's health: any answer will do, on a new connection if the old one is lost.
    pub(crate) async fn health(&self) -> Result<()> {
        let limit = self.inner.config.health_timeout;
        let asking = async {
            let connected = self.current();
            let answer = connected.health.check(ttrpc::context::with_timeout(0), &CheckRequest::new()).await;
            match answer {
                Err(e) if is_lost(&e) => self.reconnect(connected.number).await.map(|_| ()),
                _ => Ok(()),
            }
        };
        timeout(limit, asking).await.unwrap_or_else(|_| {
            Err(Error::deadline(format!(
                "the guest agent did not answer a health check within {} s (agent.health_timeout_s)",
                limit.as_secs()
            )))
        })
    }

    /// The agent's version, which no policy keeps: the health service is not subject to it.
    pub(crate) async fn version(&self) -> Result<String> {
        let limit = self.inner.config.health_timeout;
        let (connected, request) = (self.current(), CheckRequest::new());
        let asking = connected.health.version(ttrpc::context::with_timeout(0), &request);
        let answer = within(limit, asking).await;
        let answer = answer.map_err(|e| translate(e, Some(limit)).context("agent Version"))?;
        Ok(detail(&answer.agent_version))
    }

    /// One call: ends with the answer, at its limit, or with the VM, whichever is first.
    ///
    /// A lost connection is replaced once, and the call repeated if its method allows it.
    pub(crate) async fn call<Q, T>(
        &self,
        method: Method,
        function: impl AsyncFn(&AgentServiceClient, Metadata, &Q) -> ttrpc::Result<T>,
        request: &Q,
    ) -> Result<T> {
        let limit = self.limit(method);
        let mut gone = self.inner.gone.clone();
        let attempts = async {
            let connected = self.current();
            let lost = match once(&connected, limit, &function, request).await {
                Ok(answer) => return Ok(answer),
                Err(e) if is_lost(&e) => e,
                Err(e) => return Err(translate(e, limit)),
            };
            self.suspect();
            let again = self.reconnect(connected.number).await?;
            if method.is_repeatable() {
                return once(&again, limit, &function, request).await.map_err(|e| translate(e, limit));
            }
            Err(Error::unavailable(format!("the connection broke ({lost})")))
        };
        let result = tokio::select! {
            result = attempts => result,
            end = transport::ended(&mut gone) => Err(end),
            e = self.broken() => Err(e),
        };
        if matches!(&result, Err(e) if e.code() == Code::DeadlineExceeded) && method.limit() != Limit::Short {
            self.suspect();
        }
        result.map_err(|e| {
            if e.code() == Code::PermissionDenied {
                self.inner.denials.tell(method.name(), e.message());
            }
            e.context(format!("agent {}", method.name()))
        })
    }

    fn limit(&self, method: Method) -> Option<Duration> {
        match method.limit() {
            Limit::LongPoll => None,
            Limit::Create => Some(self.inner.config.create_timeout),
            Limit::Pull => Some(self.inner.config.image_pull_timeout),
            Limit::Call => Some(self.inner.config.call_timeout),
            Limit::Poll => Some(self.inner.config.call_timeout.min(limits::agent::STATS_ANSWER)),
            Limit::Short => Some(limits::stdio::STUCK_WAIT),
        }
    }

    fn current(&self) -> Connected {
        lock(&self.inner.service).clone()
    }

    async fn reconnect(&self, lost: u64) -> Result<Connected> {
        let _one = self.inner.reconnecting.lock().await;
        let current = self.current();
        if current.number != lost {
            return Ok(current);
        }
        let gone = self.inner.gone.clone();
        let limit = (self.inner.config.health_timeout, "health_timeout_s");
        let (client, health) =
            transport::connect(&self.inner.transport, &self.inner.guard, limit, gone, checked).await?;
        let again = Connected { client, health, number: lost + 1 };
        *lock(&self.inner.service) = again.clone();
        Ok(again)
    }
}

/// The clients of a connection whose agent answers a health check.
async fn checked(socket: ttrpc::r#async::transport::Socket) -> Result<(AgentServiceClient, HealthClient)> {
    let client = Client::new(socket);
    let health = HealthClient::new(client.clone());
    // The caller sets the limit.
    let answer = health.check(ttrpc::context::with_timeout(0), &CheckRequest::new()).await;
    answer.map_err(|e| translate(e, None).context("health check"))?;
    Ok((AgentServiceClient::new(client), health))
}

/// One attempt on one connection.
async fn once<Q, T>(
    connected: &Connected,
    limit: Option<Duration>,
    function: &impl AsyncFn(&AgentServiceClient, Metadata, &Q) -> ttrpc::Result<T>,
    request: &Q,
) -> ttrpc::Result<T> {
    // Our limit is to be reached first: the library takes the connection for broken after its own. The
    // agent is given the library's limit, so that a wait that we gave up ends there soon.
    let metadata = match limit {
        Some(limit) => ttrpc::context::with_duration(limit + (limit / 10).min(limits::agent::CALL_SLACK)),
        None => ttrpc::context::with_timeout(0),
    };
    let answer = function(&connected.client, metadata, request);
    match limit {
        None => answer.await,
        Some(limit) => within(limit, answer).await,
    }
}

/// The answer, or the error of a call that has met its limit.
async fn within<T>(limit: Duration, answer: impl Future<Output = ttrpc::Result<T>>) -> ttrpc::Result<T> {
    timeout(limit, answer).await.unwrap_or_else(|_| {
        Err(ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::DEADLINE_EXCEEDED, String::new())))
    })
}

/// A word that the agent says of itself: one bounded line.
pub(super) fn detail(text: &str) -> String {
    one_line(&text.chars().take(limits::agent::GUEST_DETAIL_CHARS).collect::<String>())
}

fn is_lost(e: &ttrpc::Error) -> bool {
    !matches!(e, ttrpc::Error::RpcStatus(_))
}

/// The agent's error as ours: its code, and its text without backtrace, bounded.
///
/// The agent has three codes for "not found" (unknown process 5, unknown container 3 or 13).
fn translate(e: ttrpc::Error, bound: Option<Duration>) -> Error {
    let status = match e {
        ttrpc::Error::RpcStatus(status) => status,
        other => return Error::unavailable(format!("the connection broke ({other})")),
    };
    let whole = status.message();
    if let Some(denial) = denials::denial(status.code() == ttrpc::Code::PERMISSION_DENIED, whole) {
        return Error::new(Code::PermissionDenied, denial);
    }
    let text = whole.split("Stack backtrace:").next().unwrap_or(whole).trim();
    let text = both_ends(text, limits::text::FOREIGN_TEXT_BYTES / 4);
    let unknown = text.to_ascii_lowercase().contains("invalid container id")
        || text.contains("InvalidContainerId")
        || text.contains("InvalidExecId")
        || text.contains("InitProcessNotFound");
    let code = match status.code() {
        _ if unknown => Code::NotFound,
        ttrpc::Code::NOT_FOUND => Code::NotFound,
        ttrpc::Code::INVALID_ARGUMENT => Code::InvalidArgument,
        ttrpc::Code::DEADLINE_EXCEEDED => {
            let seconds = bound.unwrap_or_default().as_secs();
            return Error::deadline(format!("no answer within {seconds} s"));
        }
        ttrpc::Code::UNIMPLEMENTED => Code::Unimplemented,
        ttrpc::Code::UNAVAILABLE => Code::FailedPrecondition,
        _ => Code::Internal,
    };
    Error::new(code, if text.is_empty() { "failed without a message" } else { &text })
}

/// A text of at most this many characters: the agent's errors begin with what failed and end with why.
fn both_ends(text: &str, most: usize) -> String {
    let count = text.chars().count();
    if count <= most {
        return text.to_owned();
    }
    let start: String = text.chars().take(most / 2).collect();
    let end: String = text.chars().skip(count - most / 2).collect();
    format!("{start} [...] {end}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_error_keeps_what_failed_and_why() {
        let text = format!("Image Pull error: {}Caused by: Not authorized", "trace ".repeat(10_000));
        let status = ttrpc::Error::RpcStatus(ttrpc::get_status(ttrpc::Code::INTERNAL, text));
        let e = translate(status, None).to_string();
        assert!(e.starts_with("Image Pull error: ") && e.ends_with("Caused by: Not authorized"), "{e}");
        assert!(e.len() < 1100, "{}", e.len());
    }

    #[test]
    fn the_agents_errors_keep_their_meaning_and_lose_their_backtrace() {
        let cases = [
            (
                ttrpc::Code::INTERNAL,
                "Invalid container id\n\nStack backtrace:\n 0: x",
                Code::NotFound,
                "Invalid container id",
            ),
            (ttrpc::Code::NOT_FOUND, "InvalidExecId", Code::NotFound, "InvalidExecId"),
            (ttrpc::Code::INVALID_ARGUMENT, "InvalidContainerId", Code::NotFound, "InvalidContainerId"),
            (
                ttrpc::Code::PERMISSION_DENIED,
                "ExecProcessRequest is blocked by policy: ",
                Code::PermissionDenied,
                "the guest's policy denies it",
            ),
            (ttrpc::Code::INTERNAL, "a\nb", Code::Internal, "a\\nb"),
            (ttrpc::Code::INTERNAL, "", Code::Internal, "failed without a message"),
            (ttrpc::Code::DEADLINE_EXCEEDED, "timeout", Code::DeadlineExceeded, "no answer within 7 s"),
        ];
        for (code, text, wanted, message) in cases {
            let status = ttrpc::Error::RpcStatus(ttrpc::get_status(code, text.to_owned()));
            let e = translate(status, Some(Duration::from_secs(7)));
            assert_eq!((e.code(), e.to_string().as_str()), (wanted, message));
        }
    }
}
