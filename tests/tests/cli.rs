//! What the agent says and leaves behind when something is wrong: one clear line, an exit code of its own kind,
//! results whole or absent, nothing running.

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use bed::process::Child;
use bed::tools;
use serde_json::Value;

const RESULTS: [&str; 3] = ["overhead.json", "result.yaml", "result.json"];
const LONGEST: Duration = Duration::from_secs(20);

fn agent() -> Command {
    Command::new(tools::agent().expect("the agent"))
}

fn run(arguments: &[&str]) -> Output {
    agent().args(arguments).output().expect("the agent starts")
}

/// A folder that does not exist yet.
fn out(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli").join(name);
    match fs::remove_dir_all(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{}: {error}", path.display()),
        _ => path,
    }
}

/// The only line that is the agent's own and not its log.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let own: Vec<_> = text.lines().filter(|line| line.starts_with("smp-agent: ")).collect();
    assert_eq!(own.len(), 1, "one line, not: {text}");
    own[0].to_owned()
}

fn refused(arguments: &[&str], code: i32, words: &[&str]) {
    let output = run(arguments);
    let line = complaint(&output);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {line}");
    for word in words {
        assert!(line.contains(word), "{arguments:?}: no {word:?} in: {line}");
    }
}

/// The process that stands for a proxy where no traffic is needed: this one.
fn me() -> String {
    std::process::id().to_string()
}

#[test]
fn a_wrong_flag_is_bad_usage() {
    let output = run(&["run", "--no-such-flag"]);
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("--no-such-flag"));
    assert_eq!(run(&["run", "--for", "soon"]).status.code(), Some(64));
    assert_eq!(run(&[]).status.code(), Some(64));
    assert_eq!(run(&["--help"]).status.code(), Some(0));
}

#[test]
fn a_proxy_that_is_not_there_is_named() {
    // Above the kernel's largest process id.
    refused(&["run", "--proxy", "999999999", "--for", "1s"], 66, &["999999999", "no process"]);
    refused(&["run", "--proxy", "no-such-proxy", "--for", "1s"], 66, &["no-such-proxy", "ps -e"]);
}

#[test]
fn a_folder_that_cannot_be_written_is_refused_before_the_measurement() {
    let file = out("file");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, "in the way").unwrap();
    let inside = file.join("results");
    let began = std::time::Instant::now();
    refused(&["run", "--proxy", &me(), "--for", "60s", "--out", &inside.to_string_lossy()], 73, &["file"]);
    assert!(began.elapsed() < LONGEST, "measured first and failed then");
    fs::remove_file(&file).unwrap();
}

#[test]
fn a_command_that_does_not_exist_leaves_no_results() {
    let folder = out("no-command");
    refused(
        &["run", "--proxy", &me(), "--out", &folder.to_string_lossy(), "--", "no-such-load-generator"],
        127,
        &["no-such-load-generator"],
    );
    assert!(RESULTS.iter().all(|file| !folder.join(file).exists()));
}

#[test]
fn a_command_that_fails_gives_its_code_and_is_measured() {
    let folder = out("failing-command");
    let output =
        run(&["run", "--proxy", &me(), "--out", &folder.to_string_lossy(), "--", "sh", "-c", "exit 7"]);
    assert_eq!(output.status.code(), Some(7));
    for file in RESULTS {
        assert!(fs::metadata(folder.join(file)).unwrap().len() > 0, "{file}");
    }
    assert_eq!(fs::read_dir(&folder).unwrap().count(), RESULTS.len(), "more than the results is left");
}

#[test]
fn ctrl_c_ends_the_command_and_writes_what_was_measured() {
    let folder = out("interrupted");
    let mut command = agent();
    command.args(["run", "--proxy", &me(), "--out"]).arg(&folder);
    // A name of its own, to be found by.
    command.args(["--", "sleep", "611"]);
    let mut child = Child::start("interrupted", &command, &log_folder("interrupted")).unwrap();
    child.until(LONGEST, "start its command", |_| Ok(sleeper().map(|_| ()))).unwrap();
    let pid = rustix::process::Pid::from_raw(child.pid().cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let status = child.wait_for(LONGEST).unwrap();
    assert_eq!((status.code(), status.signal()), (Some(130), None));
    assert_eq!(sleeper(), None, "the command still runs");
    let document: Value = serde_json::from_slice(&fs::read(folder.join("overhead.json")).unwrap()).unwrap();
    assert!(document["window"]["seconds"].as_f64().unwrap() < 60.0);
}

#[test]
fn without_the_capabilities_it_says_which() {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set=-bpf,-perfmon,-sys_admin", "--"]).arg(tools::agent().unwrap());
    let output = command.args(["run", "--proxy", &me(), "--for", "1s"]).output().unwrap();
    let line = complaint(&output);
    assert_eq!(output.status.code(), Some(77), "{line}");
    assert!(line.contains("CAP_BPF") && line.contains("CAP_PERFMON"), "{line}");
}

#[test]
fn without_the_kernels_types_it_says_so() {
    let script = "mount -t tmpfs none /sys/kernel/btf && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", script]).arg(tools::agent().unwrap());
    let output = command.args(["run", "--proxy", &me(), "--for", "1s"]).output().unwrap();
    let line = complaint(&output);
    assert_eq!(output.status.code(), Some(69), "{line}");
    assert!(line.contains("/sys/kernel/btf/vmlinux") && line.contains("CONFIG_DEBUG_INFO_BTF"), "{line}");
}

#[test]
fn without_a_hook_it_names_the_hook() {
    let none = ["write", "write_entry", "write_return"].map(|program| ["--without", program]).concat();
    refused(&[&["run", "--proxy", &me()], &none[..]].concat(), 69, &["sock_send_length", "doctor"]);
    refused(&[&["doctor"], &none[..]].concat(), 69, &["sock_send_length"]);
}

#[test]
fn without_a_tracepoint_the_function_is_tried_then_the_tracepoint_behind_it() {
    let output = run(&["doctor", "--without", "write", "--format", "json"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let programs: Value = serde_json::from_slice(&output.stdout).unwrap();
    let row = |name: &str| programs.as_array().unwrap().iter().find(|row| row["program"] == name).unwrap();
    let [entry, after] = [row("write_entry"), row("write_return")];
    if entry["verdict"] == "attached" {
        assert_eq!(after["verdict"], "not needed", "{after}");
    } else {
        let why = entry["why"].as_str().unwrap();
        assert!(why.contains("refuses fentry programs (EPERM)"), "{entry}");
        assert_eq!(after["verdict"], "attached", "{after}");
    }
}

#[test]
fn doctor_shows_every_program_and_says_that_hops_can_be_measured() {
    let output = run(&["doctor"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}");
    for hook in ["tcp_rcv_space_adjust", "tcp_sendmsg_locked", "sock_send_length", "inet_sock_set_state"] {
        assert!(text.contains(hook), "no {hook} in: {text}");
    }
    assert!(text.contains("hops can be measured"), "{text}");
}

#[test]
fn one_proxy_more_than_the_table_holds_is_said() {
    let start = |name: &str| Child::start(name, Command::new("sleep").arg("600"), &log_folder(name)).unwrap();
    let (first, second) = (start("first"), start("second"));
    let [first, second] = [&first, &second].map(|child| child.pid().to_string());
    let output = run(&["run", "--proxy", &first, "--proxy", &second, "--max-proxies", "1", "--for", "1s"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("--max-proxies") && said.contains("is full"), "{said}");
    assert_eq!(output.status.code(), Some(0), "{said}");
}

#[test]
fn an_address_in_use_is_named() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    refused(&["daemon", "--proxy", &me(), "--metrics", &address], 74, &[&address, "--metrics"]);
}

/// The process that runs `sleep 611`.
fn sleeper() -> Option<i32> {
    let mut processes = procfs::process::all_processes().expect("/proc is readable");
    processes.find_map(|process| {
        let process = process.ok()?;
        (process.cmdline().ok()? == ["sleep", "611"]).then_some(process.pid)
    })
}

fn log_folder(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cli-log").join(name);
    fs::create_dir_all(&path).expect("the folder of cargo is writable");
    path
}
