//! Pods, containers and images from their making to their end, and what is asked of them.

use serde_json::{Value, json};

use crate::crictl::{Crictl, wait_for};
use crate::rig::{Rig, with_own_engine};

/// Writes a configuration that crictl reads; answers its path.
fn file(rig: &Rig, name: &str, config: &Value) -> String {
    let path = rig.engine.path(&format!("{name}.json"));
    std::fs::write(&path, config.to_string()).expect("a file");
    path.to_string_lossy().into_owned()
}

fn pod_config(rig: &Rig, name: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "rig", "uid": format!("uid-{name}"), "attempt": 1},
        "hostname": name,
        "log_directory": rig.engine.path("logs").join(name),
        "labels": {"test": "life", "pod": name, "io.kubernetes.pod.name": name,
            "io.kubernetes.pod.namespace": "rig", "io.kubernetes.pod.uid": format!("uid-{name}")},
        "annotations": {"note": "kept"},
        "linux": {"cgroup_parent": rig.engine.cgroup_parent()},
    })
}

fn container_config(rig: &Rig, pod: &str, name: &str, words: &[&str]) -> Value {
    json!({
        "metadata": {"name": name, "attempt": 1},
        "image": {"image": rig.image},
        "command": words,
        "log_path": format!("{name}.log"),
        "labels": {"test": "life", "container": name, "io.kubernetes.container.name": name,
            "io.kubernetes.pod.name": pod, "io.kubernetes.pod.namespace": "rig",
            "io.kubernetes.pod.uid": format!("uid-{pod}")},
        "annotations": {"note": "kept"},
        "linux": {"resources": {"memory_limit_in_bytes": 64 << 20, "cpu_shares": 512}},
    })
}

/// The id that a command prints.
fn id(printed: &str) -> String {
    let id = printed.trim();
    let is_hex = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    assert!(is_hex, "{printed:?}");
    id.to_owned()
}

/// A pod with a container that runs: their ids.
fn running(rig: &Rig, crictl: &Crictl, pod: &str, words: &[&str]) -> (String, String) {
    let pod_file = file(rig, pod, &pod_config(rig, pod));
    let config = container_config(rig, pod, "main", words);
    let container_file = file(rig, &format!("{pod}-main"), &config);
    let pod = id(&crictl.ok(&["runp", &pod_file]));
    let made = crictl.ok(&["create", &pod, &container_file, &pod_file]);
    let container = id(&made);
    assert_eq!(id(&crictl.ok(&["start", &container])), container);
    (pod, container)
}

/// The ids that a list with `-q` prints.
fn ids(crictl: &Crictl, words: &[&str]) -> Vec<String> {
    let mut ids = crictl.lines(words);
    ids.sort();
    ids
}

#[test]
fn a_node_tells_its_version_conditions_and_configuration() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let version = crictl.ok(&["version"]);
        for line in ["RuntimeName:  slipway", "RuntimeApiVersion:  v1"] {
            assert!(version.contains(line), "{version}");
        }
        let info = crictl.json(&["info"]);
        let conditions = info["status"]["conditions"].as_array().expect("conditions");
        for name in ["RuntimeReady", "NetworkReady"] {
            let mut found = conditions.iter().filter(|one| one["type"] == name);
            assert_eq!(found.next().expect(name)["status"], true);
        }
        assert_eq!(info["troubles"], json!({"pods": []}));
        let template = ["info", "-o", "go-template", "--template"];
        let name = crictl.ok(&[&template[..], &["{{.features}}"]].concat());
        assert!(name.contains("supplemental_groups_policy"), "{name}");
        let handlers = crictl.ok(&[&template[..], &["{{len .runtimeHandlers}}"]].concat());
        assert!(
            handlers
                .trim()
                .parse::<usize>()
                .is_ok_and(|count| count > 0)
        );
        assert!(crictl.ok(&["runtime-config"]).contains("CGROUPFS"));
        let said = crictl.run(&["update-runtime-config", "--pod-cidr", "10.1.0.0/16"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(said.stderr.contains("successfully updated"), "{said:?}");
        assert!(crictl.ok(&["completion", "bash"]).contains("crictl"));
    });
}

#[test]
fn the_settings_of_crictl_itself_are_kept_and_lead_to_the_engine() {
    with_own_engine(async |rig| {
        let path = rig.engine.path("crictl.yaml");
        std::fs::write(&path, "").expect("a file");
        let crictl = Crictl::with_config(&path.to_string_lossy());
        let endpoint = format!("unix://{}", rig.engine.socket().display());
        let set = format!("runtime-endpoint={endpoint}");
        crictl.ok(&["config", "--set", &set]);
        let got = crictl.ok(&["config", "--get", "runtime-endpoint"]);
        assert_eq!(got.trim(), endpoint);
        assert!(crictl.ok(&["version"]).contains("slipway"));
    });
}

#[test]
fn a_pod_and_its_containers_are_made_listed_and_looked_into() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (pod, container) = running(rig, &crictl, "one", &["sleep", "1000"]);
        let listed = crictl.json(&["pods", "-o", "json"]);
        let line = &listed["items"][0];
        assert_eq!(line["id"], *pod);
        assert_eq!(line["state"], "SANDBOX_READY");
        assert_eq!(line["metadata"]["uid"], "uid-one");
        assert_eq!(line["labels"]["pod"], "one");
        assert_eq!(line["annotations"]["note"], "kept");
        let table = crictl.lines(&["pods"]);
        assert!(table[0].starts_with("POD ID"), "{table:?}");
        let short = &pod[..13];
        assert!(table[1].starts_with(short) && table[1].contains("Ready"));
        let listed = crictl.json(&["ps", "-o", "json"]);
        let line = &listed["containers"][0];
        assert_eq!(line["id"], *container);
        assert_eq!(line["podSandboxId"], *pod);
        assert_eq!(line["state"], "CONTAINER_RUNNING");
        assert_eq!(line["metadata"], json!({"name": "main", "attempt": 1}));
        assert_eq!(line["image"]["image"], *rig.image);
        assert_eq!(line["image"]["userSpecifiedImage"], *rig.image);
        let image = crictl.json(&["inspecti", &rig.image]);
        let image = image["status"]["id"].as_str().expect("an id");
        assert!(image.starts_with("sha256:"), "{image}");
        assert_eq!(line["imageId"], image);
        // The digest that the registry has, as with CRI-O.
        let reference = line["imageRef"].as_str().expect("a reference");
        let (repository, digest) = reference.split_once('@').expect("a digest");
        assert_eq!(repository, "localhost/slipway/tiny");
        assert!(digest.starts_with("sha256:"), "{digest}");
        let created = line["createdAt"].as_str().expect("a time");
        assert!(created.parse::<u64>().expect("ns") > 1_700_000_000_000_000_000);
        let table = crictl.lines(&["ps"]);
        assert!(table[0].starts_with("CONTAINER"), "{table:?}");
        for word in [&container[..13], "main", "Running", "one", "rig", short] {
            assert!(table[1].contains(word), "{word} is not in {table:?}");
        }
        let verbose = crictl.ok(&["ps", "-v"]);
        assert!(verbose.contains("uid-one"), "{verbose}");
    });
}

#[test]
fn statuses_have_what_templates_ask_for() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (pod, container) = running(rig, &crictl, "asked", &["sleep", "1000"]);
        let ask = |words: &[&str], template: &str| {
            let (name, id) = words.split_at(1);
            let words = [name, &["-o", "go-template", "--template", template], id].concat();
            crictl.ok(&words).trim().to_owned()
        };
        let inspect = ["inspect", &container];
        let pid = ask(&inspect, "{{.info.pid}}");
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).expect("a process");
        assert_eq!(words, b"sleep\x001000\x00");
        assert_eq!(ask(&inspect, "{{.info.sandboxID}}"), pod);
        assert_eq!(ask(&inspect, "{{.status.state}}"), "CONTAINER_RUNNING");
        let log = ask(&inspect, "{{.status.logPath}}");
        assert_eq!(
            log,
            rig.engine.path("logs/asked/main.log").to_string_lossy()
        );
        let memory = "{{.status.resources.linux.memoryLimitInBytes}}";
        assert_eq!(ask(&inspect, memory), (64 << 20).to_string());
        let inspectp = ["inspectp", &pod];
        let ip = ask(&inspectp, "{{.status.network.ip}}");
        assert!(ip.parse::<std::net::Ipv4Addr>().is_ok(), "{ip}");
        assert_eq!(ask(&inspectp, "{{.status.metadata.name}}"), "asked");
        let table = crictl.ok(&["inspect", "-o", "table", &container]);
        assert!(table.contains(&container), "{table}");
        let table = crictl.ok(&["inspectp", "-o", "table", &pod]);
        assert!(table.contains(&ip), "{table}");
        let quiet = crictl.json(&["inspect", "-q", &container]);
        assert!(quiet.get("info").is_none(), "{quiet}");
        let steps = &crictl.json(&["inspectp", &pod])["steps"]["calls"];
        assert_eq!(steps[0]["rpc"], "RunPodSandbox");
        let filtered = crictl.json(&["inspect", "--name", "^main$", "--pod", &pod]);
        assert_eq!(filtered["status"]["id"], *container);
    });
}

/// How people find a pod's network: by the first process that containerd and CRI-O name, or
/// by the path in the specification that they show.
#[test]
fn a_pods_network_is_found_as_with_other_engines() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (pod, container) = running(rig, &crictl, "network", &["sleep", "1000"]);
        let info = &crictl.json(&["inspectp", &pod])["info"];
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array();
        let namespaces = namespaces.expect("namespaces");
        let mut networks = namespaces.iter().filter(|one| one["type"] == "network");
        let path = networks.next().expect("a network")["path"].as_str();
        let path = path.expect("a path");
        let inode = |path: &str| {
            use std::os::unix::fs::MetadataExt;
            std::fs::metadata(path).expect("a namespace").ino()
        };
        let of_container = &crictl.json(&["inspect", &container])["info"]["pid"];
        let network = format!("/proc/{of_container}/ns/net");
        assert_eq!(inode(path), inode(&network));
        for kind in ["net", "ipc", "uts"] {
            let namespace = |pid: &Value| inode(&format!("/proc/{pid}/ns/{kind}"));
            assert_eq!(namespace(&info["pid"]), namespace(of_container), "{kind}");
        }
        crictl.ok(&["stopp", &pod]);
        assert_eq!(crictl.json(&["inspectp", &pod])["info"]["pid"], 0);
    });
}

#[test]
fn lists_are_filtered_by_ids_states_names_and_labels() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (one, lives) = running(rig, &crictl, "one", &["sleep", "1000"]);
        let (two, ends) = running(rig, &crictl, "two", &["sh", "-c", "exit 3"]);
        wait_for("the end of the second", || {
            let listed = crictl.ok(&["ps", "-q", "--state", "exited"]);
            listed.contains(&ends).then_some(())
        });
        crictl.ok(&["stopp", &two]);
        let both = |first: &String, second: &String| {
            let mut both = vec![first.clone(), second.clone()];
            both.sort();
            both
        };
        let containers = |words: &[&str]| ids(&crictl, &[&["ps", "-q"], words].concat());
        let pods = |words: &[&str]| ids(&crictl, &[&["pods", "-q"], words].concat());
        assert_eq!(containers(&[]), [lives.as_str()]);
        assert_eq!(containers(&["-a"]), both(&lives, &ends));
        assert_eq!(containers(&["-a", "--id", &ends[..8]]), [ends.as_str()]);
        assert_eq!(containers(&["-a", "--pod", &one[..8]]), [lives.as_str()]);
        assert_eq!(containers(&["--state", "exited"]), [ends.as_str()]);
        assert_eq!(containers(&["--state", "created"]), [""; 0]);
        assert_eq!(containers(&["--latest"]), [ends.as_str()]);
        assert_eq!(containers(&["-n", "2"]), both(&lives, &ends));
        assert_eq!(containers(&["-a", "--name", "^ma"]), both(&lives, &ends));
        assert_eq!(containers(&["-a", "--name", "^other"]), [""; 0]);
        assert_eq!(containers(&["-a", "--label", "test=life"]).len(), 2);
        assert_eq!(containers(&["-a", "--label", "test=other"]), [""; 0]);
        let image = ["-a", "--image", &rig.image];
        assert_eq!(containers(&image), both(&lives, &ends));
        assert_eq!(pods(&[]), both(&one, &two));
        assert_eq!(pods(&["--id", &one[..8]]), [one.as_str()]);
        assert_eq!(pods(&["--state", "Ready"]), [one.as_str()]);
        assert_eq!(pods(&["--state", "notready"]), [two.as_str()]);
        assert_eq!(pods(&["--name", "tw"]), [two.as_str()]);
        assert_eq!(pods(&["--namespace", "rig"]), both(&one, &two));
        assert_eq!(pods(&["--label", "pod=two"]), [two.as_str()]);
        assert_eq!(pods(&["--latest"]), [two.as_str()]);
        let ended = crictl.json(&["inspect", &ends]);
        assert_eq!(ended["status"]["exitCode"], 3);
        assert_eq!(ended["status"]["reason"], "Error");
    });
}

#[test]
fn limits_are_changed_one_by_one_and_a_checkpoint_is_refused_by_name() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (_, container) = running(rig, &crictl, "limits", &["sleep", "1000"]);
        let resources = || {
            let status = crictl.json(&["inspect", &container]);
            status["status"]["resources"]["linux"].clone()
        };
        // Up, and down again: swap follows, or the kernel would refuse one of the two.
        for memory in [128_u64 << 20, 32 << 20] {
            let said = crictl.ok(&["update", "--memory", &memory.to_string(), &container]);
            assert_eq!(said.trim(), container);
            let now = resources();
            assert_eq!(now["memoryLimitInBytes"], memory.to_string());
            assert_eq!(now["cpuShares"], "512", "what was not given stays");
        }
        crictl.ok(&["update", "--cpu-share", "256", &container]);
        crictl.ok(&[
            "update",
            "--cpu-period",
            "50000",
            "--cpu-quota",
            "20000",
            &container,
        ]);
        let now = resources();
        assert_eq!(now["memoryLimitInBytes"], (32_u64 << 20).to_string());
        assert_eq!(now["cpuShares"], "256");
        assert_eq!(
            (&now["cpuPeriod"], &now["cpuQuota"]),
            (&json!("50000"), &json!("20000"))
        );
        let unknown = crictl.fails(&["update", "--cpuset-cpus", "100000", &container]);
        assert!(unknown.contains("InvalidArgument"), "{unknown}");
        assert_eq!(resources(), now, "nothing of it is set");
        let export = rig.engine.path("checkpoint.tar");
        let export = format!("--export={}", export.display());
        let refused = crictl.fails(&["checkpoint", &export, &container]);
        assert!(refused.contains("CheckpointContainer"), "{refused}");
        assert!(refused.contains("Unimplemented"), "{refused}");
    });
}

#[test]
fn what_runs_is_stopped_and_removed_with_force_and_all_at_once() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (one, first) = running(rig, &crictl, "one", &["sleep", "1000"]);
        let refused = crictl.fails(&["rm", &first]);
        assert!(refused.contains("running"), "{refused}");
        let refused = crictl.fails(&["rmp", &one]);
        assert!(refused.contains("running"), "{refused}");
        assert_eq!(
            crictl.ok(&["stop", "-t", "0", &first[..10]]).trim(),
            &first[..10]
        );
        let status = crictl.json(&["inspect", &first]);
        assert_eq!(status["status"]["exitCode"], 137);
        let log = rig.engine.path("logs/one/main.log");
        assert!(log.exists());
        assert_eq!(crictl.ok(&["rm", &first]).trim(), first);
        assert!(!log.exists(), "crictl removes the log of what it removes");
        let (two, second) = running(rig, &crictl, "two", &["sleep", "1000"]);
        assert_eq!(crictl.ok(&["stop", "-a", "-t", "0"]).trim(), second);
        crictl.ok(&["rm", "-a"]);
        assert_eq!(crictl.lines(&["ps", "-a", "-q"]), [""; 0]);
        let (three, third) = running(rig, &crictl, "three", &["sleep", "1000"]);
        // Once for the stop, once for the removal.
        assert_eq!(crictl.lines(&["rm", "-f", &third]), [third.as_str(); 2]);
        let config = pod_config(rig, "four");
        let pod_file = file(rig, "four", &config);
        let words = container_config(rig, "four", "main", &["sleep", "1000"]);
        let container_file = file(rig, "four-main", &words);
        let ran = crictl.ok(&["run", "--no-pull", &container_file, &pod_file]);
        assert_eq!(crictl.ok(&["ps", "-q"]).trim(), ran.trim());
        let removed = crictl.ok(&["rmp", "-f", "-a"]);
        for pod in [one, two, three] {
            assert!(
                removed.contains(&format!("Removed sandbox {pod}")),
                "{removed}"
            );
        }
        assert_eq!(crictl.lines(&["pods", "-q"]), [""; 0]);
        assert_eq!(crictl.lines(&["ps", "-a", "-q"]), [""; 0]);
    });
}

#[test]
fn images_are_listed_looked_into_counted_and_removed() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let listed = crictl.json(&["images", "-o", "json"]);
        assert_eq!(listed["images"][0]["repoTags"][0], *rig.image);
        let table = crictl.lines(&["images", "--digests"]);
        assert!(table[1].contains("localhost/slipway/tiny"), "{table:?}");
        let verbose = crictl.ok(&["images", "-v"]);
        assert!(verbose.contains("ID: sha256:"), "{verbose}");
        let status = crictl.json(&["inspecti", &rig.image]);
        let id = status["status"]["id"].as_str().expect("an id").to_owned();
        let short = id.trim_start_matches("sha256:");
        for name in [short, &short[..13], &id] {
            let again = crictl.json(&["inspecti", name]);
            assert_eq!(again["status"]["id"], *id, "{name}");
        }
        let template = "{{.info.imageSpec.os}}";
        let os = ["inspecti", "-o", "go-template", "--template", template, &id];
        assert_eq!(crictl.ok(&os).trim(), "linux");
        let counted = crictl.json(&["imagefsinfo"]);
        let used = &counted["status"]["imageFilesystems"][0]["usedBytes"]["value"];
        let used = used.as_str().expect("bytes").parse::<u64>();
        assert!(used.expect("a number") > 0);
        let unreachable = crictl.fails(&["pull", "127.0.0.1:1/no/such:image"]);
        assert!(unreachable.contains("127.0.0.1:1"), "{unreachable}");
        let (_, container) = running(rig, &crictl, "uses", &["sleep", "1000"]);
        crictl.ok(&["rmi", "--prune"]);
        assert_eq!(crictl.lines(&["images", "-q"]), [id.as_str()], "it is used");
        crictl.run(&["rm", "-f", &container]);
        assert!(crictl.ok(&["rmi", &short[..13]]).contains("Deleted"));
        assert_eq!(crictl.lines(&["images", "-q"]), [""; 0]);
        let gone = crictl.fails(&["inspecti", &id]);
        assert!(gone.contains("no such image"), "{gone}");
    });
}

#[test]
fn what_is_not_there_is_told_by_its_name() {
    with_own_engine(async |rig| {
        let crictl = Crictl::of(rig);
        let (_, container) = running(rig, &crictl, "there", &["sleep", "1000"]);
        let long = "f".repeat(100_000);
        for unknown in ["0000000000000", "../../etc", long.as_str()] {
            let told = crictl.fails(&["inspect", unknown]);
            assert!(told.contains("NotFound"), "{told}");
            let told = crictl.fails(&["inspectp", unknown]);
            assert!(told.contains("NotFound"), "{told}");
            assert_eq!(crictl.lines(&["ps", "-a", "-q", "--id", unknown]), [""; 0]);
            assert_eq!(crictl.lines(&["pods", "-q", "--id", unknown]), [""; 0]);
        }
        let absent = crictl.fails(&["exec", "-s", &container, "/no/such/program"]);
        assert!(absent.contains("/no/such/program"), "{absent}");
        let absent = crictl.fails(&["exec", &container, "/no/such/program"]);
        assert!(absent.contains("/no/such/program"), "{absent}");
        let late = ["exec", "-s", "--timeout", "1", &container, "sleep", "100"];
        let late = crictl.fails(&late);
        assert!(late.contains("DeadlineExceeded"), "{late}");
        crictl.ok(&["stop", "-t", "0", &container]);
        for words in [
            ["exec", &container, "true"].as_slice(),
            &["attach", &container],
        ] {
            let ended = crictl.fails(words);
            assert!(ended.contains("exited"), "{words:?}: {ended}");
        }
    });
}
