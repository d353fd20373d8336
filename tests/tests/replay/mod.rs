//! A server that replays what a real API server answered, and an agent that asks it.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use anyhow::Result;
use bed::tools;
use serde_json::json;

macro_rules! recorded {
    ($name:literal) => {
        include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../agent/recorded/kubernetes/", $name))
    };
}

pub(crate) use recorded;

/// A server that answers a list with this, and, on its own, how often it was asked for one; without one it never answers.
pub fn server(list: Option<&'static [u8]>) -> Result<(String, mpsc::Receiver<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = format!("http://{}", listener.local_addr()?);
    let (asked, lists) = mpsc::channel();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let asked = asked.clone();
            thread::spawn(move || answer(&stream, list, &asked));
        }
    });
    Ok((address, lists))
}

fn answer(stream: &TcpStream, list: Option<&[u8]>, asked: &mpsc::Sender<()>) {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    while let Some(request) = lines.next() {
        let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
        // Until the empty one.
        let _headers: Vec<_> = lines.by_ref().take_while(|line| !line.is_empty()).collect();
        let whole: &[u8] = match (path.split('?').next(), list) {
            (Some("/api/v1/pods"), Some(list)) if !path.contains("watch=true") => {
                // Whoever counted may be done.
                let _counted = asked.send(());
                list
            }
            (Some("/version"), Some(_)) => recorded!("version.http"),
            (Some("/api/v1/nodes/node-a"), Some(_)) => recorded!("node.http"),
            // A watch without news, or a server that hangs.
            _ => continue,
        };
        if (&*stream).write_all(whole).is_err() {
            return;
        }
    }
}

/// An agent that is told of the server at this address; its configuration is written to `folder`.
pub fn agent(folder: &Path, server: &str) -> Result<Command> {
    let config = folder.join("config");
    fs::write(
        &config,
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "a", "cluster": {"server": server}}],
            "users": [{"name": "a", "user": {"token": "none"}}],
            "contexts": [{"name": "a", "context": {"cluster": "a", "user": "a"}}],
            "current-context": "a",
        })
        .to_string(),
    )?;
    let mut command = Command::new(tools::agent()?);
    command.arg("run").env("KUBECONFIG", config).env_remove("KUBERNETES_SERVICE_HOST").env_remove("RUST_LOG");
    // As on a machine without certificates.
    command
        .env("SSL_CERT_FILE", folder.join("no-certificates"))
        .env("SSL_CERT_DIR", folder.join("none-here"));
    Ok(command)
}
