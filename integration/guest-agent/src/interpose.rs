//! Sits between a connection and the server: records requests, and makes answers misbehave as scripted.
//!
//! Works on ttrpc frames (10 bytes: length, stream id, type, flags, big-endian), so that it can also send
//! what no server would. A connection without record and script bypasses it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use protobuf::reflect::MessageDescriptor;
use protobuf::{Message, MessageDyn};
use protobuf_json_mapping::{ParseOptions, PrintOptions};
use serde_json::{Value, json};
use tokio::io::{
    AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, split,
};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::sleep;
use ttrpc::proto::{MESSAGE_LENGTH_MAX, MESSAGE_TYPE_REQUEST, MESSAGE_TYPE_RESPONSE, Request, Response};

use crate::messages::{agent, health};
use crate::policy::Policy;
use crate::record::Record;
use crate::script::{self, Failure, Flood, Header, Rule, Rules};

const HEADER: usize = 10;
const BUFFER: usize = 64 << 10;

/// Length, stream id, type, flags, payload.
#[derive(Clone, Debug)]
struct Frame {
    length: u32,
    stream_id: u32,
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

pub(crate) struct Interposer {
    record: Arc<Record>,
    rules: Rules,
    policy: Policy,
    /// Request and answer of each method, by `service/method`.
    methods: HashMap<String, (MessageDescriptor, MessageDescriptor)>,
}

impl Interposer {
    pub(crate) fn new(record: Arc<Record>, rules: Rules) -> Arc<Self> {
        let files = [agent::file_descriptor(), health::file_descriptor()];
        let mut methods = HashMap::new();
        for service in files.iter().flat_map(|file| file.services()) {
            for method in service.methods() {
                let name = format!("grpc.{}/{}", service.proto().name(), method.proto().name());
                methods.insert(name, (method.input_type(), method.output_type()));
            }
        }
        Arc::new(Self { record, rules, policy: Policy::default(), methods })
    }

    pub(crate) fn is_on(&self) -> bool {
        self.record.is_on() || self.rules.is_on()
    }

    /// What the policy in force does to a call, and the call to it.
    fn denial(&self, name: &str, value: &Value) -> Option<Rule> {
        if let Some(sealed) = self.rules.policy() {
            self.policy.set(&sealed);
        }
        let (kind, _) = self.methods.get(name).filter(|_| name.starts_with("grpc.AgentService/"))?;
        let denial = self.policy.denial(kind.name());
        if denial.is_none() && name.ends_with("/SetPolicy") {
            self.policy.set(value["policy"].as_str().unwrap_or_default());
        }
        denial
    }

    /// The rule for a new connection.
    pub(crate) fn connection(&self) -> Option<Rule> {
        self.rules.take(script::CONNECT, &json!({}))
    }

    /// Proxies a connection until one side closes it; `number` identifies it in the record.
    pub(crate) async fn proxy<S>(self: Arc<Self>, host: S, number: u64) -> DuplexStream
    where
        S: AsyncRead + AsyncWrite + Send + 'static,
    {
        let (server, inside) = tokio::io::duplex(BUFFER);
        let (from_host, to_host) = split(host);
        let (from_agent, to_agent) = split(inside);
        let (closed, mut closing) = watch::channel(false);
        let line = Arc::new(Line {
            interposer: self,
            number,
            to_host: AsyncMutex::new(Some(Box::new(to_host))),
            to_agent: AsyncMutex::new(to_agent),
            waiting: Mutex::default(),
            closed,
        });
        tokio::spawn(async move {
            tokio::select! {
                _ = line.clone().requests(from_host) => {}
                _ = line.clone().answers(from_agent) => {}
                _ = closing.wait_for(|closed| *closed) => {}
            }
            // Tasks that still delay an answer must not keep the connection open.
            line.closed.send_replace(true);
            line.to_host.lock().await.take();
            line.to_agent.lock().await.shutdown().await.ok();
        });
        server
    }
}

/// One connection.
struct Line {
    interposer: Arc<Interposer>,
    number: u64,
    /// `None` once nothing more is to be sent.
    to_host: AsyncMutex<Option<Box<dyn AsyncWrite + Send + Unpin>>>,
    to_agent: AsyncMutex<WriteHalf<DuplexStream>>,
    /// Rules of calls not answered yet, by stream id, with the method.
    waiting: Mutex<HashMap<u32, (String, Rule)>>,
    closed: watch::Sender<bool>,
}

impl Line {
    async fn requests<R: AsyncRead + Unpin>(self: Arc<Self>, mut host: R) -> std::io::Result<()> {
        loop {
            let Some(frame) = self.clone().next_request(&mut host).await? else { continue };
            let request =
                (frame.kind == MESSAGE_TYPE_REQUEST).then(|| Request::parse_from_bytes(&frame.payload).ok());
            let Some(request) = request.flatten() else {
                self.forward(&frame).await?;
                continue;
            };
            let name = format!("{}/{}", request.service, request.method);
            let value = self
                .interposer
                .methods
                .get(&name)
                .map_or(Value::Null, |(kind, _)| to_json(kind, &request.payload));
            self.interposer.record.request(
                self.number,
                &request.method,
                request.timeout_nano / 1_000_000,
                &value,
            );
            let scripted = self.interposer.rules.take(&request.method, &value);
            match scripted.or_else(|| self.interposer.denial(&name, &value)) {
                None => self.forward(&frame).await?,
                Some(rule) => {
                    let line = self.clone();
                    tokio::spawn(async move { line.begin(frame, name, rule).await });
                }
            }
        }
    }

    /// The next frame; one that is too long to buffer is passed through, for the server to refuse.
    async fn next_request<R: AsyncRead + Unpin>(
        self: Arc<Self>,
        host: &mut R,
    ) -> std::io::Result<Option<Frame>> {
        let mut frame = read_header(host).await?;
        let length = usize::try_from(frame.length).unwrap_or(usize::MAX);
        if length <= MESSAGE_LENGTH_MAX {
            frame.payload = vec![0; length];
            host.read_exact(&mut frame.payload).await?;
            return Ok(Some(frame));
        }
        let mut agent = self.to_agent.lock().await;
        agent.write_all(&frame.bytes()).await?;
        tokio::io::copy(&mut host.take(frame.length.into()), &mut *agent).await?;
        Ok(None)
    }

    async fn forward(&self, frame: &Frame) -> std::io::Result<()> {
        self.to_agent.lock().await.write_all(&frame.bytes()).await
    }

    /// Passes a scripted call to the server, unless the rule skips it.
    async fn begin(self: Arc<Self>, frame: Frame, name: String, rule: Rule) {
        sleep(Duration::from_millis(rule.before_ms)).await;
        if rule.skip {
            let payload = Response::new().write_to_bytes().unwrap_or_default();
            let answer = Frame { length: 0, kind: MESSAGE_TYPE_RESPONSE, flags: 0, payload, ..frame };
            self.answer(answer, &name, &rule).await;
            return;
        }
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).insert(frame.stream_id, (name, rule));
        // If the server is gone, the connection is closed elsewhere.
        self.forward(&frame).await.ok();
    }

    async fn answers(self: Arc<Self>, mut agent: ReadHalf<DuplexStream>) -> std::io::Result<()> {
        loop {
            let mut frame = read_header(&mut agent).await?;
            frame.payload = vec![0; usize::try_from(frame.length).unwrap_or_default()];
            agent.read_exact(&mut frame.payload).await?;
            let scripted =
                self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(&frame.stream_id);
            match scripted {
                None => self.send(&frame.bytes()).await?,
                Some((name, rule)) => {
                    let line = self.clone();
                    tokio::spawn(async move { line.answer(frame, &name, &rule).await });
                }
            }
        }
    }

    /// Answers as the rule says.
    async fn answer(&self, mut frame: Frame, name: &str, rule: &Rule) {
        sleep(Duration::from_millis(rule.delay_ms)).await;
        if rule.crash {
            crate::cli::crash();
        }
        if let Some(flood) = &rule.flood {
            self.flood(flood).await;
        }
        if rule.hang {
            return;
        }
        if let Some(failure) = &rule.error {
            frame.payload = error_answer(failure);
        }
        if !rule.answer.is_empty() {
            frame.payload = self.changed(name, &frame.payload, &Value::Object(rule.answer.clone()));
        }
        frame.length = u32::try_from(frame.payload.len()).unwrap_or(u32::MAX);
        let bytes = match &rule.raw {
            Some(digits) => unhex(digits),
            None if rule.close && rule.cut.is_none() => Vec::new(),
            None => frame.with(&rule.header).bytes(),
        };
        // The host may be gone; that is no error here.
        self.deliver(&bytes, rule).await.ok();
        if rule.close {
            self.closed.send_replace(true);
        }
    }

    async fn deliver(&self, bytes: &[u8], rule: &Rule) -> std::io::Result<()> {
        if let Some(cut) = rule.cut {
            self.send(bytes.get(..cut).unwrap_or(bytes)).await?;
            if !rule.close {
                // Any other answer would complete the frame.
                self.mute().await;
            }
            return Ok(());
        }
        for _ in 0..=rule.repeat {
            if rule.split {
                let mut host = self.to_host.lock().await;
                for byte in bytes {
                    if let Some(host) = host.as_mut() {
                        host.write_all(&[*byte]).await?;
                        host.flush().await?;
                    }
                    tokio::task::yield_now().await;
                }
            } else {
                self.send(bytes).await?;
            }
        }
        Ok(())
    }

    async fn send(&self, bytes: &[u8]) -> std::io::Result<()> {
        match self.to_host.lock().await.as_mut() {
            Some(host) => host.write_all(bytes).await,
            None => Ok(()),
        }
    }

    /// Keeps the connection open and never writes again.
    async fn mute(&self) {
        let host = self.to_host.lock().await.take();
        let mut closed = self.closed.subscribe();
        tokio::spawn(async move {
            // Dropping the writing half closes the connection.
            closed.wait_for(|closed| *closed).await.ok();
            drop(host);
        });
    }

    async fn flood(&self, flood: &Flood) {
        let payload = vec![0; usize::try_from(flood.bytes).unwrap_or_default()];
        let mut frame = Frame { length: flood.bytes, stream_id: 0, kind: flood.kind, flags: 0, payload };
        let mut sent = 0;
        let mut batch = Vec::with_capacity(2 * BUFFER);
        while flood.frames == 0 || sent < flood.frames {
            batch.clear();
            while batch.len() < BUFFER && (flood.frames == 0 || sent < flood.frames) {
                frame.stream_id =
                    flood.stream_id.unwrap_or(1_000_001 + 2 * u32::try_from(sent % 1_000_000).unwrap_or(0));
                batch.extend(frame.bytes());
                sent += 1;
            }
            if *self.closed.borrow() || self.send(&batch).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// The answer with fields replaced.
    fn changed(&self, name: &str, response: &[u8], fields: &Value) -> Vec<u8> {
        let lie = || -> Option<Vec<u8>> {
            let mut response = Response::parse_from_bytes(response).ok()?;
            let kind = &self.interposer.methods.get(name)?.1;
            let mut value = to_json(kind, &response.payload);
            for (field, new) in script::expand(fields).as_object()? {
                value[field] = new.clone();
            }
            let options = ParseOptions { ignore_unknown_fields: false, ..Default::default() };
            let parsed =
                protobuf_json_mapping::parse_dyn_from_str_with_options(kind, &value.to_string(), &options);
            let message =
                parsed.map_err(|e| crate::cli::say(&format!("script: answer of {name}: {e}"))).ok()?;
            response.payload = message.write_to_bytes_dyn().ok()?;
            response.write_to_bytes().ok()
        };
        lie().unwrap_or_else(|| response.to_vec())
    }
}

impl Frame {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.payload.len());
        bytes.extend(self.length.to_be_bytes());
        bytes.extend(self.stream_id.to_be_bytes());
        bytes.extend([self.kind, self.flags]);
        bytes.extend_from_slice(&self.payload);
        bytes
    }

    fn with(&self, header: &Header) -> Self {
        Self {
            length: header.length.unwrap_or(self.length),
            stream_id: header.stream_id.unwrap_or(self.stream_id),
            kind: header.kind.unwrap_or(self.kind),
            flags: header.flags.unwrap_or(self.flags),
            payload: self.payload.clone(),
        }
    }
}

async fn read_header<R: AsyncRead + Unpin>(from: &mut R) -> std::io::Result<Frame> {
    let (length, stream_id) = (from.read_u32().await?, from.read_u32().await?);
    let (kind, flags) = (from.read_u8().await?, from.read_u8().await?);
    Ok(Frame { length, stream_id, kind, flags, payload: Vec::new() })
}

/// A message by the names of the protocol.
fn to_json(kind: &MessageDescriptor, payload: &[u8]) -> Value {
    let options = PrintOptions { proto_field_name: true, ..Default::default() };
    let print = |message: Box<dyn MessageDyn>| {
        let text = protobuf_json_mapping::print_to_string_with_options(&*message, &options).ok()?;
        serde_json::from_str(&text).ok()
    };
    kind.parse_from_bytes(payload).ok().and_then(print).unwrap_or(Value::Null)
}

fn error_answer(failure: &Failure) -> Vec<u8> {
    let text = match script::expand(&failure.text) {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let mut response = Response::new();
    let status = response.status.mut_or_insert_default();
    status.set_code(ttrpc::Code::UNKNOWN);
    status.code = protobuf::EnumOrUnknown::from_i32(failure.code);
    status.set_message(text);
    response.write_to_bytes().unwrap_or_default()
}

pub(crate) fn unhex(digits: &str) -> Vec<u8> {
    let digits: Vec<u8> = digits.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs = digits.chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok());
    pairs.filter_map(|pair| u8::from_str_radix(pair, 16).ok()).collect()
}
