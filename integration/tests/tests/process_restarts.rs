//! containerd killed and started again at random moments of pods' lives: no pod is lost, no event is
//! lost or delivered twice, output is complete, and nothing is left.

use std::fs;
use std::path::PathBuf;
use std::process::Output;
use std::time::{Duration, Instant};

use harness::{Containerd, until};
use nix::sys::signal::{Signal, kill};

/// Number of pods; longer runs set more, and another containerd with `KATA_SE_CONTAINERD` (1.7, 2).
fn lives() -> u64 {
    number("KATA_SE_LIVES").unwrap_or(50)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// Deterministic for a seed.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// The operation during which containerd is killed, and roughly how long that operation takes, in ms.
const MOMENTS: [(&str, u64); 5] =
    [("create", 300), ("run", 100), ("exec", 300), ("exit", 250), ("delete", 400)];

struct Life<'a> {
    node: &'a mut Containerd,
    id: String,
    /// The operation during which containerd is killed, and after which delay.
    moment: &'static str,
    delay: Duration,
    attempt: u32,
    execs: Vec<String>,
    history: Vec<String>,
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

impl<'a> Life<'a> {
    fn of(node: &'a mut Containerd, id: &str, moment: &'static str, delay: Duration) -> Self {
        let history = vec![format!("{moment} {delay:?}")];
        Self { node, id: id.to_owned(), moment, delay, attempt: 0, execs: Vec::new(), history }
    }

    /// `ctr` with these arguments; containerd is killed and restarted meanwhile, if this is the moment.
    fn ctr(&mut self, moment: &str, words: &[&str]) -> Output {
        if self.moment != moment {
            return self.node.ctr(words);
        }
        self.moment = "over";
        let (pid, delay) = (self.node.pid(), self.delay);
        let killer = std::thread::spawn(move || {
            std::thread::sleep(delay);
            kill(pid, Signal::SIGKILL).expect("kill containerd");
        });
        let output = self.node.ctr(words);
        killer.join().expect("killer");
        self.history.push(format!("killed under {moment}: {}", text(&output.stderr).trim()));
        self.node.kill();
        self.node.up();
        output
    }

    fn log(&self) -> PathBuf {
        self.node.path(&format!("{}.{}.log", self.id, self.attempt))
    }

    fn lines(&self) -> Vec<String> {
        fs::read_to_string(self.log()).unwrap_or_default().lines().map(str::to_owned).collect()
    }

    /// The task's status according to containerd; none: unknown.
    fn status(&self) -> Option<String> {
        self.node.task(&self.id).map(|(status, _)| status)
    }

    fn await_status(&self, wanted: Option<&str>) {
        until(&format!("{} is {wanted:?}", self.id), 20, || self.status().as_deref() == wanted);
    }

    /// Retries until it runs. An attempt interrupted by the kill either succeeded or left nothing.
    fn create(&mut self) {
        loop {
            self.attempt += 1;
            assert!(self.attempt <= 3, "{:?}", self.history);
            let uri = format!("file://{}", self.log().display());
            let script = "n=0; trap 'echo last $n; exit 5' TERM; \
                          while :; do echo line $n; n=$((n+1)); sleep 0.02; done";
            let id = self.id.clone();
            let options = ["--detach", "--log-uri", &uri];
            let words = ["run", "--platform", "linux/s390x", "--runtime", "io.containerd.kata-se.v2"];
            let rest = [harness::IMAGE, &id, "sh", "-c", script];
            let output = self.ctr("create", &[&words[..], &options, &rest].concat());
            if output.status.success() {
                return self.await_status(Some("RUNNING"));
            }
            self.history.push(format!("attempt {}: {}", self.attempt, text(&output.stderr).trim()));
            // A Start may still be in progress in the shim.
            std::thread::sleep(Duration::from_millis(300));
            match self.status().as_deref() {
                Some("RUNNING") => return,
                Some(_) => {
                    self.node.ctr(&["task", "rm", "--force", &id]);
                    self.await_status(None);
                }
                None => {}
            }
            self.node.ctr(&["container", "rm", &id]);
            self.node.ctr(&["snapshot", "rm", &id]);
        }
    }

    fn exec(&mut self, name: &str, moment: &str) {
        let log = self.node.path(&format!("{}.{name}.log", self.id));
        let uri = format!("file://{}", log.display());
        let id = self.id.clone();
        let words = ["task", "exec", "--detach", "--log-uri", &uri, "--exec-id", name, &id];
        self.execs.push(name.to_owned());
        let output = self.ctr(moment, &[&words[..], &["sh", "-c", "echo one; sleep 0.1; echo two"]].concat());
        let started = format!("exec-started {id}/{name}");
        if output.status.success() {
            until("the exec's start event", 20, || self.node.delivered().of(&id).contains(&started));
        }
    }

    /// Whatever was started has ended, with all its output.
    fn execs_are_whole(&self) {
        for name in &self.execs {
            let of = format!("{}/{name}", self.id);
            let delivered = || self.node.delivered().of(&self.id);
            if delivered().contains(&format!("exec-started {of}")) {
                until("the exec's end", 20, || {
                    delivered().iter().any(|l| l.starts_with(&format!("exit {of} ")))
                });
                assert!(delivered().contains(&format!("exit {of} 0")), "{:?}", delivered());
                let log = self.node.path(&format!("{}.{name}.log", self.id));
                assert_eq!(fs::read_to_string(log).expect("log"), "one\ntwo\n", "{name}: {:?}", self.history);
            }
        }
    }

    fn end(&mut self) {
        let id = self.id.clone();
        let killed = self.ctr("exit", &["task", "kill", "--signal", "TERM", &id]);
        std::thread::sleep(Duration::from_millis(100));
        if !killed.status.success() && self.status().as_deref() == Some("RUNNING") {
            // It was not passed on, or is in progress.
            self.node.ctr(&["task", "kill", "--signal", "TERM", &id]);
        }
        self.await_status(Some("STOPPED"));
        let removed = self.ctr("delete", &["task", "rm", &id]);
        let message = text(&removed.stderr);
        assert!(message.contains("exit code 5") || !removed.status.success(), "{message} {:?}", self.history);
        if self.status().is_some() {
            // Repeated; if the task is gone already, containerd only forgets it.
            self.node.ctr(&["task", "rm", &id]);
        }
        self.await_status(None);
        self.node.ctr_ok(&["container", "rm", &id]);
    }

    /// The lines are consecutive, and the last one is the last.
    fn output_is_whole(&self) {
        let lines = self.lines();
        let (last, counted) = lines.split_last().expect("output");
        let wanted: Vec<String> = (0..counted.len()).map(|n| format!("line {n}")).collect();
        assert!(counted == wanted, "{:?}", self.history);
        // A signal may come between a line and its count.
        let counts = [counted.len(), counted.len().saturating_sub(1)].map(|n| format!("last {n}"));
        assert!(counts.contains(last), "{last} after {} lines", counted.len());
    }

    /// Each event once, in order; abandoned attempts come before the last one.
    fn events_are_whole(&self) {
        let delivered = || self.node.delivered().of(&self.id);
        let last = format!("delete {} 5", self.id);
        let what = format!("its last event: {:?} {:?}", self.history, delivered());
        until(&what, 20, || delivered().last() == Some(&last));
        let delivered = delivered();
        let mut attempts: Vec<Vec<String>> = vec![Vec::new()];
        for line in &delivered {
            attempts.last_mut().expect("one").push(line.replace(&self.id, "c"));
            if line.starts_with("delete") {
                attempts.push(Vec::new());
            }
        }
        assert!(attempts.pop().is_some_and(|rest| rest.is_empty()), "{delivered:?}");
        let whole = attempts.pop().expect("the last attempt");
        let init: Vec<&String> = whole.iter().filter(|l| !l.contains('/')).collect();
        assert_eq!(
            init,
            ["create c", "start c", "exit c 5", "delete c 5"],
            "{delivered:?} {:?}",
            self.history
        );
        for attempt in attempts {
            let kinds: Vec<&str> = attempt.iter().filter_map(|l| l.split(' ').next()).collect();
            let known = [
                &["create", "delete"][..],
                &["create", "exit", "delete"],
                &["create", "start", "exit", "delete"],
            ];
            assert!(known.contains(&kinds.as_slice()), "{delivered:?} {:?}", self.history);
        }
        for name in &self.execs {
            let of: Vec<&String> = whole.iter().filter(|l| l.contains(&format!("/{name}"))).collect();
            let all = [
                format!("exec-added c/{name}"),
                format!("exec-started c/{name}"),
                format!("exit c/{name} 0"),
            ];
            let all: Vec<&String> = all.iter().collect();
            assert!(of == all || of == all[..1] || of.is_empty(), "{delivered:?} {:?}", self.history);
        }
    }
}

#[test]
fn fifty_pods_lose_nothing_when_containerd_is_killed() {
    let now = std::time::UNIX_EPOCH.elapsed().expect("clock");
    let seed = number("KATA_SE_SEED").unwrap_or(now.as_secs() << 20 | u64::from(now.subsec_micros()) | 1);
    let (mut random, began) = (Random(seed), Instant::now());
    eprintln!("KATA_SE_SEED={seed}, {} lives", lives());
    let version = std::env::var("KATA_SE_CONTAINERD").unwrap_or_else(|_| "1.6".to_owned());
    let mut node = Containerd::doubled(&version);
    // One pod runs throughout.
    Life::of(&mut node, "always", "never", Duration::ZERO).create();
    let mut restarts = 0;
    for (n, (moment, most)) in (0..lives()).zip(MOMENTS.into_iter().cycle()) {
        let delay = Duration::from_millis(random.below(most));
        let mut life = Life::of(&mut node, &format!("c{n}"), moment, delay);
        life.create();
        life.ctr("run", &["version"]);
        life.exec("e1", "exec");
        life.exec("e2", "never");
        life.execs_are_whole();
        life.end();
        life.output_is_whole();
        life.events_are_whole();
        restarts += u64::from(life.moment == "over");
    }
    let mut always = Life::of(&mut node, "always", "never", Duration::ZERO);
    always.attempt = 1;
    always.end();
    always.output_is_whole();
    always.events_are_whole();
    // A shim whose Delete was answered to a containerd that was killed exits by itself.
    let pods = || harness::pods(&node.path("run")).len();
    let left = pods();
    until("no shim is left", 20, || pods() == 0);
    node.assert_clean();
    assert_eq!(restarts, lives());
    eprintln!(
        "{restarts} restarts in {} lives, {left} shims ended by themselves, {:.1} s",
        lives(),
        began.elapsed().as_secs_f64()
    );
}
