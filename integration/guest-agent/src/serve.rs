//! Accepts connections and hands them to the ttrpc server.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::unfold;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_vsock::{VsockAddr, VsockListener};
use ttrpc::r#async::transport::{Listener, Socket};
use ttrpc::r#async::{Server, Service};

use crate::interpose::Interposer;
use crate::script::Rule;

/// The agent's port.
const PORT: u32 = 1024;
const ANY_CID: u32 = u32::MAX;

/// The longest greeting of a host.
const GREETING_BYTES: usize = 64;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Vsock,
    /// `greeted`: a connection begins with `CONNECT 1024`, as vsock devices in user space do it.
    Unix {
        path: PathBuf,
        greeted: bool,
    },
}

/// Listens and serves; the server ends when it is dropped.
pub(crate) async fn serve(
    endpoint: Endpoint,
    services: HashMap<String, Service>,
    interposer: Arc<Interposer>,
) -> Result<Server, String> {
    let (sender, receiver) = mpsc::channel::<Socket>(1);
    let sockets =
        unfold(receiver, async |mut receiver| receiver.recv().await.map(|socket| (Ok(socket), receiver)));
    match endpoint {
        Endpoint::Vsock => {
            let listener = VsockListener::bind(VsockAddr::new(ANY_CID, PORT));
            let listener = listener.map_err(|e| format!("listen on vsock port {PORT}: {e}"))?;
            tokio::spawn(async move {
                let mut number = 0;
                while let Ok((stream, _)) = listener.accept().await {
                    number += 1;
                    tokio::spawn(vsock_connection(stream, number, interposer.clone(), sender.clone()));
                }
            });
        }
        Endpoint::Unix { path, greeted } => {
            std::fs::remove_file(&path).ok();
            let listener =
                UnixListener::bind(&path).map_err(|e| format!("listen on {}: {e}", path.display()))?;
            tokio::spawn(async move {
                let mut number = 0;
                while let Ok((stream, _)) = listener.accept().await {
                    number += 1;
                    tokio::spawn(unix_connection(
                        stream,
                        number,
                        greeted,
                        interposer.clone(),
                        sender.clone(),
                    ));
                }
            });
        }
    }
    let mut server = Server::new().add_listener(Listener::new(sockets)).register_service(services);
    server.start().await.map_err(|e| e.to_string())?;
    Ok(server)
}

async fn vsock_connection(
    stream: tokio_vsock::VsockStream,
    number: u64,
    interposer: Arc<Interposer>,
    server: mpsc::Sender<Socket>,
) {
    let socket = if interposer.is_on() {
        Socket::new(interposer.proxy(stream, number).await)
    } else {
        Socket::new(stream)
    };
    server.send(socket).await.ok();
}

async fn unix_connection(
    mut stream: UnixStream,
    number: u64,
    greeted: bool,
    interposer: Arc<Interposer>,
    server: mpsc::Sender<Socket>,
) {
    let rule = interposer.connection();
    if let Some(rule) = &rule {
        sleep(Duration::from_millis(rule.before_ms)).await;
    }
    if greeted && !greet(&mut stream, rule.as_ref()).await {
        return;
    }
    match rule {
        // Accepted and silent until the other side closes it.
        Some(rule) if rule.hang => {
            stream.read_to_end(&mut Vec::new()).await.ok();
        }
        Some(rule) if rule.close => {}
        _ => {
            let socket = if interposer.is_on() {
                Socket::new(interposer.proxy(stream, number).await)
            } else {
                Socket::new(stream)
            };
            server.send(socket).await.ok();
        }
    }
}

/// Reads `CONNECT <port>` and answers `OK <port>`; false ends the connection.
async fn greet(stream: &mut UnixStream, rule: Option<&Rule>) -> bool {
    let mut line = Vec::new();
    while line.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) if line.len() < GREETING_BYTES => line.push(byte),
            _ => return false,
        }
    }
    let asked = String::from_utf8_lossy(&line).trim().to_ascii_uppercase();
    if asked != format!("CONNECT {PORT}") {
        return false;
    }
    let Some(rule) = rule else { return stream.write_all(format!("OK {PORT}\n").as_bytes()).await.is_ok() };
    sleep(Duration::from_millis(rule.delay_ms)).await;
    match &rule.raw {
        Some(digits) => stream.write_all(&crate::interpose::unhex(digits)).await.is_ok(),
        None if rule.hang || rule.close => true,
        None => stream.write_all(format!("OK {PORT}\n").as_bytes()).await.is_ok(),
    }
}
