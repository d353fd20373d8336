//! Connections of a proxy over Unix-domain sockets are not measured, and every output says so.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, ensure};
use bed::netns::{Bed, Family};
use bed::process::Child;
use bed::tools;
use serde_json::Value;

const LONGEST: Duration = Duration::from_secs(20);
/// Clients that call the proxy over a Unix-domain socket.
const CLIENTS: u64 = 2;

#[test]
fn connections_over_unix_domain_sockets_are_told_of() {
    let dir = folder();
    let (server, frontend) = (dir.join("server.sock"), dir.join("frontend.sock"));
    let most = serve(&server).expect("a server");
    let bed = Bed::new().expect("a bed");
    let listen = Bed::proxy_address(Family::V4);
    let config = format!(
        "global
    nbthread 2
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 600s
    timeout server 600s
frontend downstream
    bind {listen}
    bind unix@{}
    default_backend upstream
backend upstream
    server upstream unix@{}
",
        frontend.display(),
        server.display()
    );
    let path = dir.join("haproxy.cfg");
    fs::write(&path, config).expect("the folder is writable");
    let mut proxy = bed.proxy.command(tools::haproxy().expect("HAProxy"));
    // Its master speaks to the worker over a pair of sockets, which leads nowhere else.
    proxy.args(["-W", "-db", "-f"]).arg(path);
    let mut proxy = Child::start("haproxy", &proxy, &dir).expect("the proxy starts");
    proxy.wait_for_port(listen, LONGEST).expect("the proxy listens");
    let clients: Vec<_> = (0..CLIENTS).map(|_| UnixStream::connect(&frontend).expect("a call")).collect();

    let mut agent = Command::new(tools::agent().expect("the agent"));
    agent.args(["run", "--proxy", &proxy.pid().to_string(), "--out"]).arg(&dir).arg("--");
    agent.args(bed.client.wrap(tools::wrk().expect("wrk")));
    agent.args(["-t1", "-c4", "-d2s", &format!("http://{listen}/")]);
    let (mut agent, mut stdout) = Child::piped("smp-agent", &agent).expect("the agent starts");
    let mut table = String::new();
    stdout.read_to_string(&mut table).expect("what the agent says");
    assert!(agent.wait_for(LONGEST).expect("the agent ends").success(), "{table}");
    drop(clients);

    let document = fs::read(dir.join("overhead.json")).expect("a document");
    let document: Value = serde_json::from_slice(&document).expect("JSON");
    let found = &document["proxies"][0]["unix_connections"];
    assert_eq!(found["downstream"], CLIENTS, "{found}");
    let (upstream, most) = (found["upstream"].as_u64().expect("a number"), most.load(Ordering::Relaxed));
    // The proxy closes some of them and opens others, and the agent looks about once a second.
    assert!(upstream >= 1 && upstream <= most, "{upstream} of {most}");
    // What was read over TCP went where no probe is.
    let matching = &document["matching"];
    assert_eq!((&matching["exact"], &matching["ambiguous"]), (&0.into(), &0.into()), "{matching}");
    assert!(matching["local"].as_u64().is_some_and(|local| local > 100), "{matching}");
    let told = format!("{CLIENTS} from clients, {upstream} to servers");
    let warnings = document["warnings"].as_array().expect("warnings");
    let warned = |text: &str| text.contains("Unix-domain") && text.contains(&told);
    assert!(warnings.iter().filter_map(Value::as_str).any(warned), "{warnings:?}");
    let table = table.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(table.contains("WARNING") && warned(&table), "{table}");
}

/// Answers HTTP on a Unix-domain socket until the test ends. Says how many connections it had at most at a time.
fn serve(path: &Path) -> Result<Arc<AtomicU64>> {
    if path.exists() {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let (open, most) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let seen = Arc::clone(&most);
    thread::spawn(move || {
        for stream in listener.incoming() {
            seen.fetch_max(open.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
            let open = Arc::clone(&open);
            thread::spawn(move || {
                let ended = answer(stream?);
                open.fetch_sub(1, Ordering::Relaxed);
                ended
            });
        }
    });
    Ok(most)
}

fn answer(mut stream: UnixStream) -> Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        ensure!(lines.read_line(&mut line)? > 0, "the proxy has closed");
        if line == "\r\n" {
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")?;
        }
    }
}

fn folder() -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("unix");
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
