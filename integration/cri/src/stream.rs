//! The streams of exec, attach and port forward over the streaming server's WebSocket endpoint
//! (`v4.channel.k8s.io`: each message begins with the number of its channel).

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use harness::STREAMS;
use tungstenite::client::ClientRequestBuilder;
use tungstenite::{Error, Message, WebSocket};

use crate::Node;

/// Channels of exec and attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// The outcome, as JSON of a `metav1.Status`.
    Outcome = 3,
    /// A terminal's size.
    Resize = 4,
}

/// One connection; received data is kept for each channel.
#[derive(Debug)]
pub struct Stream {
    socket: WebSocket<TcpStream>,
    received: [Vec<u8>; 5],
    closed: bool,
}

impl Stream {
    /// Opens the URL that Exec, Attach or PortForward returned.
    pub fn open(node: &Node, url: &str) -> Self {
        let tcp = node.containerd.connect(STREAMS).expect("streaming server");
        tcp.set_read_timeout(Some(Duration::from_millis(100))).expect("limit");
        let uri = url.replacen("http://", "ws://", 1).parse().expect("URL");
        let request = ClientRequestBuilder::new(uri).with_sub_protocol("v4.channel.k8s.io");
        let mut opening = tungstenite::client(request, tcp);
        let end = Instant::now() + Duration::from_secs(20);
        let (socket, _) = loop {
            match opening {
                Ok(open) => break open,
                Err(tungstenite::HandshakeError::Interrupted(going_on)) if Instant::now() < end => {
                    opening = going_on.handshake();
                }
                Err(e) => panic!("{url}: {e}"),
            }
        };
        Self { socket, received: Default::default(), closed: false }
    }

    pub fn send(&mut self, channel: Channel, data: &[u8]) {
        self.send_on(channel as u8, data);
    }

    /// On any channel: a port forward has two for each port, data and error.
    pub fn send_on(&mut self, channel: u8, data: &[u8]) {
        let message = [&[channel], data].concat();
        self.socket.send(Message::binary(message)).expect("send");
    }

    /// Sets a terminal's size.
    pub fn resize(&mut self, width: u16, height: u16) {
        self.send(Channel::Resize, format!("{{\"Width\":{width},\"Height\":{height}}}").as_bytes());
    }

    /// Data received on a channel so far.
    pub fn text(&self, channel: Channel) -> String {
        self.text_on(channel as usize)
    }

    pub fn text_on(&self, channel: usize) -> String {
        String::from_utf8_lossy(&self.received[channel]).into_owned()
    }

    /// Reads until `channel` has received `text`.
    pub fn until(&mut self, channel: Channel, text: &str) {
        self.until_on(channel as usize, text);
    }

    pub fn until_on(&mut self, channel: usize, text: &str) {
        self.read_while(&format!("{text:?} on channel {channel}"), |s| !s.text_on(channel).contains(text));
    }

    /// Reads to the end, and returns the outcome.
    pub fn outcome(&mut self) -> String {
        self.read_while("the end", |s| !s.closed);
        self.text(Channel::Outcome)
    }

    fn read_while(&mut self, what: &str, wanted: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_secs(30);
        while wanted(self) {
            assert!(!self.closed && Instant::now() < end, "{what} never came: {:?}", self.shown());
            match self.socket.read() {
                Ok(Message::Binary(message)) => {
                    let Some((channel, data)) = message.split_first() else { continue };
                    self.received[usize::from(*channel)].extend_from_slice(data);
                }
                Err(Error::Io(e)) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Ok(Message::Close(_)) | Err(_) => self.closed = true,
                Ok(_) => {}
            }
        }
    }

    fn shown(&self) -> Vec<String> {
        self.received.iter().map(|text| String::from_utf8_lossy(text).into_owned()).collect()
    }
}
