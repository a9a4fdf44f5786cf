//! How long things take, and what a monitor weighs. Measures, claims nothing:
//! `cargo test --release -p runtime --test launchers -- --ignored --nocapture timing`

use std::time::{Duration, Instant};

use crate::support::{Kind, Pod, TestSpec};

const ROUNDS: usize = 30;

/// Times of one thing, in microseconds.
#[derive(Default)]
struct Times(Vec<u128>);

impl Times {
    fn add(&mut self, since: Instant) {
        self.0.push(since.elapsed().as_micros());
    }

    fn show(&mut self, what: &str) {
        self.0.sort_unstable();
        let at = |part: usize| self.0[(self.0.len() - 1) * part / 100];
        println!(
            "{what:<28} min {:>6}  p50 {:>6}  p90 {:>6} us",
            at(0),
            at(50),
            at(90)
        );
    }
}

/// Create, start and exec, back to back and after quiet moments.
pub(crate) async fn of_calls(launcher: Kind) {
    for gap in [0, 200] {
        let mut pod = Pod::new(launcher).await;
        let (mut create, mut start, mut exec, mut delete) = (
            Times::default(),
            Times::default(),
            Times::default(),
            Times::default(),
        );
        for _ in 0..ROUNDS {
            let quiet = || tokio::time::sleep(Duration::from_millis(gap));
            let spec = TestSpec::new(&["sleep", "1000"]);
            let (request, cgroup, _) = pod.request(&spec);
            let id = request.id.clone();
            quiet().await;
            let since = Instant::now();
            let created = pod.monitor.create(request).await.unwrap();
            create.add(since);
            quiet().await;
            let since = Instant::now();
            pod.monitor.start(&id).await.unwrap();
            start.add(since);
            let log = pod.scratch().join("none");
            let container = crate::support::TestContainer {
                id: id.clone(),
                cgroup,
                created,
                log,
                upper: pod.scratch().to_owned(),
            };
            quiet().await;
            let since = Instant::now();
            pod.exec(&container, &TestSpec::new(&["true"]))
                .await
                .unwrap();
            exec.add(since);
            pod.monitor.signal(&id, 9).await.unwrap();
            pod.exit(&container).await;
            let since = Instant::now();
            pod.monitor.delete(&id).await.unwrap();
            delete.add(since);
        }
        create.show(&format!("create, {gap} ms gaps"));
        start.show(&format!("start, {gap} ms gaps"));
        exec.show(&format!("exec, {gap} ms gaps"));
        delete.show(&format!("delete, {gap} ms gaps"));
        pod.end().await;
    }
}

/// Spawn and setup; the monitor's share of memory, idle and with a container.
pub(crate) async fn of_monitors(launcher: Kind) {
    let mut pods = Vec::new();
    let mut setup = Times::default();
    for _ in 0..ROUNDS {
        let since = Instant::now();
        pods.push(Pod::new(launcher).await);
        setup.add(since);
    }
    setup.show("spawn and setup of a pod");
    let pss = |pods: &[Pod]| {
        let each = pods.iter().map(|pod| {
            let path = format!("/proc/{}/smaps_rollup", pod.monitor.pid());
            let text = std::fs::read_to_string(path).unwrap();
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("Pss:"))
                .unwrap();
            line.trim()
                .trim_end_matches(" kB")
                .parse::<usize>()
                .unwrap()
        });
        each.sum::<usize>() / pods.len()
    };
    println!(
        "PSS of {ROUNDS} monitors, each           {} KiB",
        pss(&pods)
    );
    let mut containers = Vec::new();
    for pod in &mut pods {
        let container = pod.run(&TestSpec::shell("echo hello; sleep 1000")).await;
        container.logged("hello");
        containers.push(container);
    }
    println!("the same with a container each       {} KiB", pss(&pods));
    for pod in pods {
        pod.end().await;
    }
}

/// How fast 100-byte lines become a log.
pub(crate) async fn of_logs(launcher: Kind) {
    let mut pod = Pod::new(launcher).await;
    let line = "x".repeat(99);
    let spec = TestSpec::shell(&format!("yes {line} | head -c 500000000"));
    let container = pod.create(&spec).await;
    let since = Instant::now();
    pod.start(&container).await;
    pod.exit(&container).await;
    let seconds = since.elapsed().as_secs_f64();
    let lines = std::fs::metadata(&container.log).unwrap().len() / 140;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pod.monitor.pid())).unwrap();
    let field = |n: usize| stat.split(' ').nth(n).unwrap().parse::<f64>().unwrap() / 100.0;
    println!(
        "500 MB of 100-byte lines: {:.0} MB/s ({lines} lines)",
        500.0 / seconds
    );
    println!(
        "the monitor's CPU time: {:.2} s user, {:.2} s system",
        field(13),
        field(14)
    );
    pod.end().await;
}
