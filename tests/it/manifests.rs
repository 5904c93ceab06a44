//! The manifests of `deploy/kubernetes`: the daemon runs as they say, and two pods of one node get along.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use crate::harness::manifests::{file, object, objects, texts};
use crate::harness::node::{ASKED, Node, server};
use crate::harness::process::{Process, cannot_run, command};
use crate::harness::{Place, Sink, ask, namespace, needs, qtype, sink, until, wire};

/// How long a pod may take until its probe says yes.
const START: Duration = Duration::from_secs(30);

/// What the image starts: the Dockerfile's ENTRYPOINT.
fn entrypoint() -> Vec<String> {
    let dockerfile = file("deploy/Dockerfile");
    let line = dockerfile.lines().find_map(|line| line.strip_prefix("ENTRYPOINT "));
    texts(&serde_json::from_str(line.expect("an ENTRYPOINT")).expect("a JSON list"))
}

/// A pod of the DaemonSet on this node, as a container runtime would start it.
struct Pod {
    process: Process,
    container: Value,
    /// Gone last: what is mounted in it is gone with the process.
    _place: Place,
}

impl Pod {
    /// Makes its volumes and starts it; `host` stands for the folders of the host that it mounts.
    fn start(objects: &[Value], host: &Path) -> Self {
        let place = Place::new();
        let spec = &object(objects, "DaemonSet")["spec"]["template"]["spec"];
        let container = spec["containers"][0].clone();
        let mut script = String::from(
            "mount --bind \"$ROOT\" \"$ROOT\"; cd \"$ROOT\"
             for folder in usr lib lib64 proc dev; do
               mkdir -p $folder; mount --rbind /$folder $folder; mount --make-rprivate $folder
             done
             mount -o remount,bind,ro usr; mkdir -p bin
             touch nodens; mount --bind \"$NODENS\" nodens\n",
        );
        for mount in container["volumeMounts"].as_array().expect("mounts") {
            let volumes = spec["volumes"].as_array().expect("volumes");
            let volume =
                volumes.iter().find(|volume| volume["name"] == mount["name"]).expect("there");
            let source = volume_folder(volume, objects, &place, host);
            let target = mount["mountPath"].as_str().expect("a path").trim_start_matches('/');
            let source = source.display();
            script += &format!("mkdir -p {target}; mount --bind {source} {target}\n");
            if mount["readOnly"] == true {
                script += &format!("mount -o remount,bind,ro {target}\n");
            }
        }
        let security = &container["securityContext"];
        if security["readOnlyRootFilesystem"] == true {
            script += "mount -o remount,bind,ro .\n";
        }
        script += "exec chroot . /usr/bin/setpriv \"$@\"";
        std::fs::create_dir(place.path("root")).expect("a folder");
        let mut launcher = command("unshare");
        launcher.args(["--mount", "--propagation", "private", "sh", "-euc", &script, "pod"]);
        launcher.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        launcher.env("ROOT", place.path("root")).env("NODENS", env!("CARGO_BIN_EXE_nodens"));
        for variable in container["env"].as_array().into_iter().flatten() {
            let text = |key: &str| variable[key].as_str().expect("a text");
            launcher.env(text("name"), text("value"));
        }
        launcher.args(privileges(security)).arg("--").args(command_line(&container));
        let process = Process::start(launcher, &place.path("log"));
        Self { process, container, _place: place }
    }

    /// Runs the command of one of its probes inside it, as the kubelet does.
    fn probe(&self, probe: &str) -> Output {
        let pid = self.process.pid();
        command("nsenter")
            .arg(format!("--mount=/proc/{pid}/ns/mnt"))
            .arg(format!("--root=/proc/{pid}/root"))
            .arg("--")
            .args(texts(&self.container[probe]["exec"]["command"]))
            .output()
            .expect("nsenter runs")
    }

    /// Waits until the pod counts as ready.
    fn wait(&mut self) {
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let is_good = || {
                if let Some(status) = self.process.ended() {
                    panic!("the pod ended with {status}:\n{}", self.process.log());
                }
                self.probe(probe).status.success()
            };
            assert!(
                until(START, is_good),
                "{probe}: {:?}\n{}",
                self.probe(probe),
                self.process.log()
            );
        }
    }

    /// Its processes' line `key` of `/proc/PID/status`.
    fn status(&self, key: &str) -> String {
        let path = format!("/proc/{}/status", self.process.pid());
        let text = std::fs::read_to_string(path).expect("it lives");
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.expect(key).trim().to_owned()
    }
}

/// The folder that stands for a volume.
fn volume_folder(volume: &Value, objects: &[Value], place: &Place, host: &Path) -> PathBuf {
    if let Some(path) = volume["hostPath"]["path"].as_str() {
        return host.join(path.trim_start_matches('/'));
    }
    let folder = place.path(volume["name"].as_str().expect("a name"));
    std::fs::create_dir(&folder).expect("a folder");
    if let Some(name) = volume["configMap"]["name"].as_str() {
        let map = object(objects, "ConfigMap");
        assert_eq!(map["metadata"]["name"], name);
        for (file, text) in map["data"].as_object().expect("files") {
            std::fs::write(folder.join(file), text.as_str().expect("text")).expect("written");
        }
    } else {
        assert!(volume["emptyDir"].is_object(), "no other kind of volume is known here: {volume}");
    }
    folder
}

/// What `setpriv` is told for a security context.
fn privileges(security: &Value) -> Vec<String> {
    let number = |key: &str| security[key].as_u64().unwrap_or_else(|| panic!("{key} is not said"));
    let mut bounding = String::from("--bounding-set=");
    assert_eq!(texts(&security["capabilities"]["drop"]), ["ALL"]);
    bounding += "-all";
    for capability in texts(&security["capabilities"]["add"]) {
        bounding += &format!(",+{}", capability.to_lowercase());
    }
    let mut arguments = vec![bounding, "--inh-caps=-all".to_owned(), "--clear-groups".to_owned()];
    arguments.push(format!("--reuid={}", number("runAsUser")));
    arguments.push(format!("--regid={}", number("runAsGroup")));
    if security["allowPrivilegeEscalation"] == false {
        arguments.push("--no-new-privs".to_owned());
    }
    arguments
}

/// What a container starts: the image's entry point unless it names a command.
fn command_line(container: &Value) -> Vec<String> {
    let command = texts(&container["command"]);
    let command = if command.is_empty() { entrypoint() } else { command };
    [command, texts(&container["args"])].concat()
}

/// The folder that stands for the host, with a resolv.conf wherever the manifest looks for one.
fn host_with(objects: &[Value], resolv_conf: &str) -> Place {
    let place = Place::new();
    let spec = &object(objects, "DaemonSet")["spec"]["template"]["spec"];
    for volume in spec["volumes"].as_array().expect("volumes") {
        let Some(path) = volume["hostPath"]["path"].as_str() else { continue };
        let folder = place.path(path.trim_start_matches('/'));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::write(folder.join("resolv.conf"), resolv_conf).expect("written");
    }
    place
}

#[test]
fn a_pod_of_the_daemonset_answers_as_the_manifests_say_and_its_successor_takes_over() {
    needs!("ip", "nft", "conntrack", "unshare", "nsenter", "setpriv", "chroot");
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return cannot_run("a container runtime is root, and so is this test");
    }
    namespace::inside(|| {
        let node = Node::new();
        let upstream = Sink::at(([198, 18, 9, 9], 53).into(), |seen| sink::ordinary(seen).now());
        let objects = objects();
        let host = host_with(&objects, "nameserver 198.18.9.9\n");
        let mut first = Pod::start(&objects, host.as_path());
        first.wait();
        for key in ["CapPrm", "CapEff", "CapBnd"] {
            assert_eq!(first.status(key), "0000000000001400", "{key}");
        }
        assert_eq!(first.status("NoNewPrivs"), "1");
        let ask_pod = |name: &str| {
            let answer = node.try_pod(ASKED[0], name, Duration::from_secs(5));
            answer.unwrap_or_else(|| panic!("{name} was not answered"))
        };
        assert!(node.takes_ordinary_path(false, "first", START), "{}", first.process.log());
        assert_eq!(ask_pod("www.example.org").data(qtype::A), ["192.0.2.7"]);
        assert_eq!(upstream.seen_for("www.example.org.").len(), 1, "{}", first.process.log());
        ask_pod("kubernetes.default.svc.cluster.local");
        let cluster = node.cluster[0].seen_for("kubernetes.default.svc.cluster.local.");
        assert_eq!(cluster.len(), 1, "the cluster's names are asked of the cluster DNS");

        let mut second = Pod::start(&objects, host.as_path());
        second.wait();
        assert!(first.probe("livenessProbe").status.success(), "each has a socket of its own");
        assert!(node.takes_ordinary_path(false, "both", START));
        first.process.signal(libc::SIGTERM);
        let status = first.process.wait(START);
        assert!(status.is_some_and(|status| status.success()), "{}", first.process.log());
        assert!(second.probe("readinessProbe").status.success());
        assert!(node.takes_ordinary_path(false, "second", START), "{}", second.process.log());
        let metrics = || std::net::TcpStream::connect("127.0.0.1:9253").is_ok();
        assert!(until(START, metrics), "it gets the admin address when the first has left");
        let server = server(ASKED[0]);
        let host_process = wire::tcp(server, &ask("host.example.org", qtype::A));
        assert_eq!(host_process.data(qtype::A), ["192.0.2.7"]);
    });
}

#[test]
fn the_manifests_say_what_a_node_agent_must_say() {
    let objects = objects();
    let daemonset = &object(&objects, "DaemonSet")["spec"];
    let spec = &daemonset["template"]["spec"];
    let container = &spec["containers"][0];
    let rolling = &daemonset["updateStrategy"]["rollingUpdate"];
    for (what, found, must) in [
        ("maxSurge", &rolling["maxSurge"], Value::from(1)),
        ("maxUnavailable", &rolling["maxUnavailable"], Value::from(0)),
        ("hostNetwork", &spec["hostNetwork"], true.into()),
        ("dnsPolicy", &spec["dnsPolicy"], "Default".into()),
        ("priorityClassName", &spec["priorityClassName"], "system-node-critical".into()),
        ("seccomp", &spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault".into()),
        ("ports", &container["ports"], Value::Null),
        ("tolerations", &spec["tolerations"][0]["operator"], "Exists".into()),
        ("root", &container["securityContext"]["readOnlyRootFilesystem"], true.into()),
    ] {
        assert_eq!(found, &must, "{what}");
    }
    assert!(container["resources"]["limits"]["memory"].is_string(), "a memory limit");
    for rule in object(&objects, "ClusterRole")["rules"].as_array().expect("rules") {
        assert_eq!(texts(&rule["verbs"]), ["list", "watch"], "nodens changes nothing: {rule}");
    }
}
