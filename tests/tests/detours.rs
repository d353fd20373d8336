//! What does not simply cross: requests that are tried again, side calls, copies, a proxy's own answers, clients that
//! leave, proxies that are reloaded or restarted. Each leaves nothing behind: the classes add up, nothing stays in
//! flight, and plain load afterwards is measured as if nothing had been.
#![expect(clippy::float_cmp, reason = "counts are whole numbers")]

mod scene;

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bed::netns::{Bed, Family};
use bed::process::Child;
use bed::proxy::nginx;
use bed::tools;
use rustix::process::{Pid, Signal, kill_process};
use scene::{Daemon, Scene};
use serde_json::{Value, json};

const CONNECTIONS: usize = 8;
const EACH: usize = 40;
/// Connections that wake every worker, each asking after the one before was answered: their messages are told apart.
const WAKERS: usize = 16;
const REQUESTS: f64 = (CONNECTIONS * EACH) as f64;
/// How long the last copy of a request may take to its server.
const COPY_LONGEST: Duration = Duration::from_secs(2);

/// What each detour makes of [`REQUESTS`] requests, to show and to judge: requests and responses that crossed, messages
/// without a counterpart, local ones, connections opened.
fn detour(
    name: &str,
    start: impl Fn(&Scene) -> Result<Child>,
    left: f64,
    go: impl Fn(&Scene) -> Result<()>,
) -> Result<[f64; 5]> {
    let scene = Scene::new(name)?;
    let proxy = start(&scene)?;
    let pid = proxy.pid();
    let mut daemon = Daemon::start(&scene, &pid.to_string(), pid)?;
    // The proxy's connections to its server are there then, and its habits are known.
    scene.assert_measures_well(&mut daemon, CONNECTIONS)?;
    let before = daemon.quiet()?;
    daemon.left = left;
    go(&scene)?;
    // What was read from a connection that has closed, and went nowhere, is given up at its thread's next message.
    thread::sleep(Duration::from_millis(100));
    scene.wake(WAKERS, 4)?;
    let after = daemon.quiet()?;
    let mut came = after.since(&before);
    came[0] -= 4.0 * WAKERS as f64;
    came[1] -= 4.0 * WAKERS as f64;
    eprintln!("{name}: requests, responses, unmatched, local, connects: {came:?}");
    // A response to a copy that stayed may be taken for another one, once, and so late that it shows in the mean.
    if left > 0.0
        && let Err(error) = scene.assert_measures_well(&mut daemon, CONNECTIONS)
    {
        eprintln!("{name}: {error:#}");
    }
    scene.assert_measures_well(&mut daemon, CONNECTIONS)?;
    Ok(came)
}

/// Of one connection the messages are told apart; of several, where others' messages come in between, most are.
/// `beside` is what the server is asked for in all, and how often for each request.
fn assert_crossed_once(
    name: &str,
    start: fn(&Scene) -> Result<Child>,
    path: &str,
    (beside, times): (&str, u64),
) {
    // The response to a copy may come last: it stays until its connection is read again.
    let left = if path == "/mirror" { 2.0 * CONNECTIONS as f64 } else { 0.0 };
    let go = |scene: &Scene, connections: usize| {
        scene.ask(connections, EACH, path, "200")?;
        // Nobody waits for the answer to a copy: the last one may still be under way.
        let expected = times * (connections * EACH) as u64;
        let deadline = Instant::now() + COPY_LONGEST;
        while scene.server.asked(beside) < expected && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(10));
        }
        let asked = scene.server.asked(beside);
        ensure!(asked == expected, "{beside} was asked for {asked} times");
        Ok(())
    };
    let each = EACH as f64;
    let one = detour(&format!("{name}-1"), start, left, |scene| go(scene, 1));
    let [requests, responses, unmatched, local, _] = one.expect("a measurement");
    // Health checks go on meanwhile: two messages may be misjudged. Where the response to a copy is, so are those behind it on
    // its connection until that is written to for a request: agent/DECISIONS.md, 28.
    let misjudged = if path == "/mirror" { 10.0 } else { 2.0 };
    for (what, count, of, most) in [
        ("requests", requests, each, 2.0),
        ("responses", responses, each, 2.0),
        ("unmatched", unmatched, 0.0, misjudged),
    ] {
        assert!((count - of).abs() <= most, "{name}, one connection: {count} {what} of {of}");
    }
    // The answer in between, or the one to a copy, and the write that is no crossing; Envoy's health checks as well.
    let missed = if path == "/mirror" { misjudged } else { 0.0 };
    assert!(local + missed >= 2.0 * each, "{name}, one connection: {local} local");
    let several = detour(name, start, left, |scene| go(scene, CONNECTIONS));
    let [requests, responses, unmatched, local, _] = several.expect("a measurement");
    assert!((0.98 * REQUESTS..=1.02 * REQUESTS).contains(&requests), "{name}: {requests} requests");
    assert!((0.8 * REQUESTS..=1.02 * REQUESTS).contains(&responses), "{name}: {responses} responses");
    assert!(unmatched <= 0.4 * REQUESTS, "{name}: {unmatched} unmatched");
    assert!(local >= 1.3 * REQUESTS, "{name}: {local} local");
}

#[test]
fn a_request_that_is_tried_again_crosses_once() {
    assert_crossed_once("retry", envoy, "/retry", ("/retry", 2));
}

#[test]
fn a_request_with_a_side_call_crosses_once() {
    // nginx's auth_request and mirror leave a message behind now and then: agent/DECISIONS.md, 22.
    assert_crossed_once("ext-authz", envoy, "/side", ("/authorize/side", 1));
}

#[test]
fn a_request_with_a_copy_crosses_once() {
    assert_crossed_once("mirror-envoy", envoy, "/mirror", ("/mirror", 2));
}

/// Other messages go on between its pieces.
#[test]
fn a_message_that_comes_in_pieces_crosses_once() {
    let came = detour("pieces", nginx, 0.0, |scene| scene.ask(CONNECTIONS, EACH, "/plain/pieces", "200"));
    let [requests, responses, unmatched, ..] = came.expect("a measurement");
    // Seen in eight runs: 316 requests or more, 310 responses or more.
    assert!((0.98 * REQUESTS..=1.02 * REQUESTS).contains(&requests), "{requests} requests");
    assert!((0.9 * REQUESTS..=REQUESTS).contains(&responses), "{responses} responses");
    assert!(unmatched <= 0.1 * REQUESTS, "{unmatched} unmatched");
}

#[test]
fn a_proxys_own_answers_are_local() {
    for (path, status) in [("/none", "404"), ("/redirect", "301"), ("/limited", "429")] {
        let name = format!("own-{status}");
        let came = detour(&name, envoy, 0.0, |scene| {
            if path == "/limited" {
                // One is free.
                scene.ask(1, 1, path, "200")?;
            }
            scene.ask(CONNECTIONS, EACH, path, status)
        });
        let [requests, responses, unmatched, local, _] = came.expect("a measurement");
        let crossed = if path == "/limited" { 1.0 } else { 0.0 };
        assert_eq!([requests, responses, unmatched], [crossed, crossed, 0.0], "{status}");
        // Health checks are local too: a request and its answer each.
        assert!(local >= REQUESTS, "{status}: {local} local");
    }
}

#[test]
fn clients_that_leave_take_their_requests_with_them() {
    const COUNT: usize = 20;
    for (name, start) in [
        ("left-envoy", envoy as fn(&Scene) -> Result<Child>),
        ("left-nginx", nginx),
        ("left-haproxy", haproxy),
    ] {
        let came = detour(name, start, 0.0, |scene| scene.leave(COUNT));
        let [requests, _, unmatched, ..] = came.expect("a measurement");
        // A message or two may be misjudged.
        assert!((COUNT as f64 - requests).abs() <= 2.0, "{name}: {requests} requests");
        assert!(unmatched <= 4.0, "{name}: {unmatched} unmatched");
    }
}

#[test]
fn a_proxy_that_is_reloaded_under_load() {
    for (name, start, signal) in [
        ("reload-nginx", nginx as fn(&Scene) -> Result<Child>, Signal::HUP),
        ("reload-haproxy", haproxy, Signal::USR2),
    ] {
        let scene = Scene::new(name).expect("a scene");
        let proxy = start(&scene).expect("a proxy");
        let pid = Pid::from_raw(proxy.pid().cast_signed()).expect("a process");
        let mut daemon = Daemon::start(&scene, &proxy.pid().to_string(), proxy.pid()).expect("the agent");
        thread::scope(|scope| {
            let load = scope.spawn(|| scene.ask(CONNECTIONS, 400, "/plain", "200"));
            thread::sleep(Duration::from_millis(50));
            kill_process(pid, signal).expect("the proxy is there");
            // nginx closes the connections of its old workers as they get idle: clients see that.
            let _cut = load.join().expect("no panic");
        });
        thread::sleep(Duration::from_secs(1));
        let counts = daemon.quiet().expect("quiet");
        eprintln!("{name}: {counts:?}");
        scene.assert_measures_well(&mut daemon, CONNECTIONS).expect("right afterwards");
    }
}

#[test]
fn envoy_restarted_under_load() {
    let scene = Scene::new("restart").expect("a scene");
    let first = envoy(&scene).expect("a proxy");
    let mut daemon = Daemon::start(&scene, "envoy", first.pid()).expect("the agent");
    thread::scope(|scope| {
        let load = scope.spawn(|| scene.ask(CONNECTIONS, 4000, "/plain", "200"));
        thread::sleep(Duration::from_millis(200));
        first.stop().expect("it stops");
        let cut = load.join().expect("no panic");
        assert!(cut.is_err(), "the load was over before");
    });
    let counts = daemon.quiet().expect("quiet");
    eprintln!("restart: {counts:?}");
    let second = envoy(&scene).expect("a proxy");
    let mut daemon = daemon.of(second.pid());
    scene.ask(1, 1, "/plain", "200").expect("an answer");
    scene.assert_measures_well(&mut daemon, CONNECTIONS).expect("right afterwards");
}

fn envoy(scene: &Scene) -> Result<Child> {
    let typed = |name: &str| format!("type.googleapis.com/envoy.extensions.{name}");
    let server = Bed::server_address(Family::V4);
    let cluster = |name: &str, port: u16| {
        json!({
            "name": name, "type": "STATIC", "connect_timeout": "5s",
            "circuit_breakers": {"thresholds": [{"max_retries": 1024}]},
            "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {
                "address": {"socket_address": {"address": server.ip().to_string(), "port_value": port}},
            }}]}]},
        })
    };
    let mut watched = cluster("watched", Scene::mannered().port());
    watched["health_checks"] = json!([{
        "timeout": "1s", "interval": "0.1s", "unhealthy_threshold": 1, "healthy_threshold": 1,
        "http_health_check": {"path": "/health"},
    }]);
    let off = json!({"envoy.filters.http.ext_authz": {
        "@type": typed("filters.http.ext_authz.v3.ExtAuthzPerRoute"), "disabled": true,
    }});
    let to = |path: &str, mut action: Value| {
        action["cluster"] = "mannered".into();
        json!({"match": {"prefix": path}, "route": action, "typed_per_filter_config": off})
    };
    let mut side = to("/side", json!({}));
    side.as_object_mut().expect("a route").remove("typed_per_filter_config");
    let mut limited = to("/limited", json!({}));
    limited["typed_per_filter_config"]["envoy.filters.http.local_ratelimit"] = json!({
        "@type": typed("filters.http.local_ratelimit.v3.LocalRateLimit"),
        "stat_prefix": "limit",
        "token_bucket": {"max_tokens": 1, "tokens_per_fill": 1, "fill_interval": "3600s"},
        "filter_enabled": {"default_value": {"numerator": 100}},
        "filter_enforced": {"default_value": {"numerator": 100}},
    });
    let routes = json!([
        to("/retry", json!({"retry_policy": {
            "retry_on": "5xx", "num_retries": 2,
            "retry_back_off": {"base_interval": "0.005s", "max_interval": "0.01s"},
        }})),
        to("/mirror", json!({"request_mirror_policies": [{"cluster": "watched"}]})),
        side,
        limited,
        {"match": {"prefix": "/none"}, "direct_response": {"status": 404}, "typed_per_filter_config": off},
        {"match": {"prefix": "/redirect"}, "redirect": {"path_redirect": "/"}, "typed_per_filter_config": off},
        to("/slow", json!({})),
        to("/plain", json!({})),
        {"match": {"prefix": "/"}, "route": {"cluster": "plain"}, "typed_per_filter_config": off},
    ]);
    let listen = Bed::proxy_address(Family::V4);
    let config = json!({"static_resources": {
        "clusters": [cluster("plain", server.port()), cluster("mannered", Scene::mannered().port()), watched],
        "listeners": [{
            "name": "downstream",
            "address": {"socket_address": {"address": listen.ip().to_string(), "port_value": listen.port()}},
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": typed("filters.network.http_connection_manager.v3.HttpConnectionManager"),
                    "stat_prefix": "downstream",
                    "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]},
                    "http_filters": [
                        {"name": "envoy.filters.http.local_ratelimit", "typed_config": {
                            "@type": typed("filters.http.local_ratelimit.v3.LocalRateLimit"), "stat_prefix": "limit",
                        }},
                        {"name": "envoy.filters.http.ext_authz", "typed_config": {
                            "@type": typed("filters.http.ext_authz.v3.ExtAuthz"),
                            "transport_api_version": "V3",
                            "http_service": {
                                "server_uri": {"uri": "http://bed", "cluster": "mannered", "timeout": "5s"},
                                "path_prefix": "/authorize",
                            },
                        }},
                        {"name": "envoy.filters.http.router",
                            "typed_config": {"@type": typed("filters.http.router.v3.Router")}},
                    ],
                },
            }]}],
        }],
    }});
    let arguments =
        ["--config-path", "CONFIG", "--concurrency", "2", "--disable-hot-restart", "--log-level", "warning"];
    scene.proxy(tools::envoy()?, &arguments, &config.to_string())
}

fn nginx(scene: &Scene) -> Result<Child> {
    let (listen, plain, mannered) =
        (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4), Scene::mannered());
    let directives = format!(
        "upstream plain {{ server {plain}; keepalive 64; keepalive_requests 1000000; }}
    upstream mannered {{ server {mannered}; keepalive 64; keepalive_requests 1000000; }}
    proxy_http_version 1.1;
    proxy_set_header Connection \"\";
    server {{
        listen {listen};
        location / {{ proxy_pass http://plain; }}
        location /plain {{ proxy_pass http://mannered; }}
        location /slow {{ proxy_pass http://mannered; }}
    }}"
    );
    let block = nginx::http(&directives, &scene.dir);
    scene.start(&nginx::command(2, &scene.bed.proxy, &block, &scene.dir)?)
}

fn haproxy(scene: &Scene) -> Result<Child> {
    let (listen, plain, mannered) =
        (Bed::proxy_address(Family::V4), Bed::server_address(Family::V4), Scene::mannered());
    let config = format!(
        "global
    nbthread 2
defaults
    mode http
    http-reuse always
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend downstream
    bind {listen}
    use_backend mannered if {{ path_beg /plain /slow }}
    default_backend plain
backend plain
    server plain {plain}
backend mannered
    server mannered {mannered}
"
    );
    scene.proxy(tools::haproxy()?, &["-W", "-db", "-f", "CONFIG"], &config)
}
