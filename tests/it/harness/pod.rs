//! A pod of the DaemonSet, started by its manifest as a container runtime would: volumes, environment, user,
//! capabilities, probes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use serde_json::Value;

use super::manifests::{file, object, texts};
use super::process::{Process, cannot_run, command};
use super::{Place, until};

/// Where the kubelet mounts a service account, below the container's root.
const ACCOUNT: &str = "var/run/secrets/kubernetes.io/serviceaccount";

/// What the node is called.
const NODE: &str = "node-1";

/// A pod's service account, and where the API server is: the kubelet gives both to every container.
pub struct Account {
    pub server: SocketAddr,
    pub token: String,
    /// In PEM, who signs the API server's certificate.
    pub authority: String,
}

impl Account {
    /// One whose API server is away.
    pub fn of_nobody() -> Self {
        let certificate = rcgen::generate_simple_self_signed(["kubernetes".to_owned()]);
        Self {
            server: ([127, 0, 0, 1], super::place::free_port()).into(),
            token: "token".to_owned(),
            authority: certificate.expect("a certificate").cert.pem(),
        }
    }

    /// Writes the files of the mounted folder.
    fn write(&self, folder: &Path) {
        std::fs::create_dir(folder).expect("a folder");
        for (name, text) in
            [("token", &*self.token), ("ca.crt", &self.authority), ("namespace", "nodens")]
        {
            std::fs::write(folder.join(name), text).expect("written");
        }
    }
}

/// Ends the calling test unless it may start pods as a container runtime does.
pub fn may_start_pods() -> bool {
    // SAFETY: a plain system call.
    let is_root = unsafe { libc::geteuid() } == 0;
    if !is_root {
        cannot_run("a container runtime is root, and so is this test");
    }
    is_root
}

/// How long a pod may take until its probe says yes.
pub const START: Duration = Duration::from_secs(30);

/// What the image starts: the Dockerfile's ENTRYPOINT.
fn entrypoint() -> Vec<String> {
    let dockerfile = file("deploy/Dockerfile");
    let line = dockerfile.lines().find_map(|line| line.strip_prefix("ENTRYPOINT "));
    texts(&serde_json::from_str(line.expect("an ENTRYPOINT")).expect("a JSON list"))
}

/// A pod of the DaemonSet on this node, as a container runtime would start it.
pub struct Pod {
    pub process: Process,
    container: Value,
    /// Gone last: what is mounted in it is gone with the process.
    _place: Place,
}

impl Pod {
    /// Makes its volumes and starts it; `host` stands for the folders of the host that it mounts.
    pub fn start(objects: &[Value], host: &Path, account: &Account) -> Self {
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
        let folder = place.path("account");
        account.write(&folder);
        script += &format!(
            "mkdir -p {ACCOUNT}; mount --bind {} {ACCOUNT}; mount -o remount,bind,ro {ACCOUNT}\n",
            folder.display()
        );
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
        launcher.env("KUBERNETES_SERVICE_HOST", account.server.ip().to_string());
        launcher.env("KUBERNETES_SERVICE_PORT", account.server.port().to_string());
        for variable in container["env"].as_array().into_iter().flatten() {
            let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
            let value = match field {
                Some(field) => {
                    assert_eq!(field, "spec.nodeName", "no other field is known here");
                    NODE
                }
                None => variable["value"].as_str().expect("a text"),
            };
            launcher.env(variable["name"].as_str().expect("a name"), value);
        }
        launcher.args(privileges(security)).arg("--").args(command_line(&container));
        let process = Process::start(launcher, &place.path("log"));
        Self { process, container, _place: place }
    }

    /// Runs the command of one of its probes inside it, as the kubelet does.
    pub fn probe(&self, probe: &str) -> Output {
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
    pub fn wait(&mut self) {
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
    pub fn status(&self, key: &str) -> String {
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
pub fn host_with(objects: &[Value], resolv_conf: &str) -> Place {
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
