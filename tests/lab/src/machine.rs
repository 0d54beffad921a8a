//! One virtual machine: its disks, its QEMU process, and commands run in it as root.

use std::{
    cell::RefCell,
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use data_encoding::BASE64;
use serde_json::{Value, json};

use crate::{control::Control, image::Image};

/// How long a machine may take to boot, and a command in it to run, under emulation on a
/// machine that does other things as well. Reaching it is a failure, never a retry.
const BOOT_TIME_MAX: Duration = Duration::from_secs(240);
const COMMAND_TIME_MAX: Duration = Duration::from_secs(300);

/// How long the guest agent may take to answer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);

/// What is printed of a machine where a command does not end: which tasks wait, and for what.
const LOOK_AT_WHAT_HANGS: &str = "
    uptime
    ps -eo pid,stat,wchan:32,args | awk '$2 ~ /^[DZ]/'
    echo w > /proc/sysrq-trigger
    dmesg | tail -n 150
    cat /proc/drbd || true
    systemctl list-jobs
    systemctl list-timers --all
    timeout 20 dmsetup status || true";
const LOOK_TIME_MAX: Duration = Duration::from_secs(60);

/// Between two looks at whether a command has ended.
const POLL_TIME: Duration = Duration::from_millis(30);

/// What a machine is made of. It stays when the machine is switched off.
#[derive(Clone)]
pub(crate) struct Spec {
    /// Its host name, and the folder of its files below the lab's.
    pub(crate) name: &'static str,
    /// Sizes of its empty disks, in GiB: `/dev/vdc` and on. They are sparse files.
    pub(crate) disks: &'static [u64],
    /// Network links, in the order of its interfaces: `eth0` and on.
    pub(crate) links: &'static [Link],
}

/// One end of a cable between two machines.
#[derive(Clone, Copy)]
pub(crate) struct Link {
    /// The cable's name; its two ends have the same.
    pub(crate) name: &'static str,
    /// One end listens, the other dials and dials again.
    pub(crate) listens: bool,
    /// Address and prefix length of this end.
    pub(crate) address: &'static str,
}

/// What a command in a machine came to.
pub(crate) struct Output {
    /// Exit code; 128 and the signal where it was killed.
    pub(crate) code: i64,
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error.
    pub(crate) stderr: String,
}

/// A running machine. It dies with this value, and with the thread that booted it.
pub(crate) struct Machine {
    spec: Spec,
    folder: PathBuf,
    process: Child,
    agent: RefCell<Control>,
    qmp: RefCell<Control>,
    verbose: bool,
}

impl Machine {
    /// Starts QEMU; [`Self::wait`] waits for the system in it. `folder` keeps its disks, which
    /// are made where they are missing. `verbose` prints every command.
    pub(crate) fn start(
        spec: &Spec,
        image: &Image,
        tools: &Path,
        folder: &Path,
        verbose: bool,
    ) -> Result<Self> {
        fs::create_dir_all(folder)?;
        image.overlay(&folder.join("root.qcow2"))?;
        let mut command = image.qemu(&format!("systemd.hostname={}", spec.name));
        command.args(["-smp", "1", "-m", "1536", "-name", spec.name]);
        disk(&mut command, &folder.join("root.qcow2"), "qcow2", false);
        disk(&mut command, tools, "raw", true);
        for (number, gib) in spec.disks.iter().enumerate() {
            let path = folder.join(format!("disk{number}.raw"));
            let file =
                fs::OpenOptions::new().create(true).truncate(false).write(true).open(&path)?;
            file.set_len(gib << 30)?;
            disk(&mut command, &path, "raw", false);
        }
        let cables = folder.parent().context("a folder in the lab's")?;
        for (number, link) in spec.links.iter().enumerate() {
            let socket = cables.join(link.name);
            let role = if link.listens { "server=on" } else { "server=off,reconnect-ms=200" };
            let netdev = format!(
                "stream,id=net{number},{role},addr.type=unix,addr.path={}",
                socket.display()
            );
            let host = if link.listens { 1 } else { 2 };
            let device = format!(
                "virtio-net-pci,netdev=net{number},mac=52:54:00:00:{number:02x}:{host:02x}"
            );
            command.args(["-netdev", &netdev, "-device", &device]);
        }
        let (agent, qmp) = (folder.join("agent"), folder.join("qmp"));
        for (id, path) in [("agent", &agent), ("qmp", &qmp)] {
            let chardev = format!("socket,id={id},server=on,wait=off,path={}", path.display());
            command.args(["-chardev", &chardev]);
        }
        command.args(["-mon", "chardev=qmp,mode=control", "-device", "virtio-serial-pci"]);
        command.args(["-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"]);
        command.arg("-serial").arg(format!("file:{}", folder.join("console.log").display()));
        let log = fs::File::create(folder.join("qemu.log"))?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut process = command.spawn().context("start qemu-system-x86_64")?;

        // QEMU makes its sockets before anything else; there is no message to wait for.
        let deadline = Instant::now() + Duration::from_secs(30);
        while !(agent.exists() && qmp.exists() && Control::connect(&qmp).is_ok()) {
            if process.try_wait()?.is_some() || Instant::now() > deadline {
                let log = fs::read_to_string(folder.join("qemu.log")).unwrap_or_default();
                let _ = process.kill();
                bail!("{}: QEMU did not start: {log}", spec.name);
            }
            thread::sleep(POLL_TIME);
        }
        let mut qmp = Control::connect(&qmp)?;
        qmp.call("qmp_capabilities", &json!({}), deadline)?;
        let agent = RefCell::new(Control::connect(&agent)?);
        let (spec, folder) = (spec.clone(), folder.to_owned());
        Ok(Self { spec, folder, process, agent, qmp: RefCell::new(qmp), verbose })
    }

    /// Waits until the system runs commands, and connects its cables.
    pub(crate) fn wait(&self) -> Result<()> {
        let deadline = Instant::now() + BOOT_TIME_MAX;
        self.agent
            .borrow_mut()
            .synchronise(self.process.id(), deadline)
            .with_context(|| format!("{}: it does not boot: {}", self.spec.name, self.console()))?;
        // The agent answers early in the boot, and devices and services come up after it.
        // Whether all of them do is not the question here.
        self.until("[[ $(systemctl is-system-running || true) =~ ^(running|degraded)$ ]]")?;
        let mut script = String::from("udevadm settle; mkdir -p /lab; mount -o ro /dev/vdb /lab\n");
        for (number, link) in self.spec.links.iter().enumerate() {
            writeln!(script, "ip address add {} dev eth{number}", link.address)?;
            writeln!(script, "ip link set eth{number} up")?;
        }
        self.sh(&script)?;
        Ok(())
    }

    /// Its name.
    pub(crate) const fn name(&self) -> &'static str {
        self.spec.name
    }

    /// Runs a Bash script as root, and returns whatever it came to.
    pub(crate) fn run(&self, script: &str) -> Result<Output> {
        let started = Instant::now();
        let result = self.execute(script);
        if self.verbose {
            println!("# {} s: {}", started.elapsed().as_secs_f32(), self.where_is(script));
        }
        result
    }

    fn execute(&self, script: &str) -> Result<Output> {
        let output = self.execute_within(script, COMMAND_TIME_MAX)?;
        if let Some(output) = output {
            return Ok(output);
        }
        let seen = match self.execute_within(LOOK_AT_WHAT_HANGS, LOOK_TIME_MAX) {
            Ok(Some(seen)) => seen.stdout,
            Ok(None) => "looking at it hangs as well".to_owned(),
            Err(error) => format!("{error:#}"),
        };
        bail!("{}: still running after {COMMAND_TIME_MAX:?}\n{seen}", self.where_is(script));
    }

    /// What a script came to, or `None` where it still runs after `time_max`.
    fn execute_within(&self, script: &str, time_max: Duration) -> Result<Option<Output>> {
        let deadline = Instant::now() + time_max;
        let mut agent = self.agent.borrow_mut();
        // The agent waits for no command: it answers where the command does not end.
        let mut ask = |command: &str, arguments: &Value| {
            agent
                .call(command, arguments, Instant::now() + ANSWER_TIME_MAX)
                .with_context(|| self.where_is(script))
        };
        let arguments = json!({
            "path": "/bin/bash",
            "arg": ["-euo", "pipefail", "-c", script],
            "capture-output": true,
        });
        let started = ask("guest-exec", &arguments)?;
        let pid = &started["pid"];
        loop {
            let status = ask("guest-exec-status", &json!({ "pid": pid }))?;
            if status["exited"] == json!(true) {
                ensure!(status["out-truncated"] != json!(true), "{}", self.where_is(script));
                let code = match (&status["exitcode"], &status["signal"]) {
                    (Value::Number(code), _) => code.as_i64().unwrap_or(-1),
                    (_, Value::Number(signal)) => 128 + signal.as_i64().unwrap_or(0),
                    _ => -1,
                };
                let stdout = text(&status["out-data"])?;
                return Ok(Some(Output { code, stdout, stderr: text(&status["err-data"])? }));
            }
            if Instant::now() > deadline {
                return Ok(None);
            }
            thread::sleep(POLL_TIME);
        }
    }

    /// Runs a Bash script as root that must succeed, and returns its trimmed output.
    pub(crate) fn sh(&self, script: &str) -> Result<String> {
        let output = self.run(script)?;
        ensure!(
            output.code == 0,
            "{}: exit {}\n{}{}",
            self.where_is(script),
            output.code,
            output.stdout,
            output.stderr
        );
        Ok(output.stdout.trim_end().to_owned())
    }

    /// Runs a script again and again until it succeeds.
    pub(crate) fn until(&self, script: &str) -> Result<()> {
        let deadline = Instant::now() + COMMAND_TIME_MAX;
        while self.run(script)?.code != 0 {
            ensure!(Instant::now() < deadline, "{}: never came true", self.where_is(script));
            thread::sleep(POLL_TIME);
        }
        Ok(())
    }

    /// Plugs the cable of interface `number` in or out.
    pub(crate) fn cable(&self, number: usize, plugged: bool) -> Result<()> {
        let arguments = json!({ "name": format!("net{number}"), "up": plugged });
        let deadline = Instant::now() + Duration::from_secs(10);
        self.qmp.borrow_mut().call("set_link", &arguments, deadline)?;
        Ok(())
    }

    /// Pulls the plug: what the system had not written to a disk is gone.
    pub(crate) fn power_off(mut self) -> Result<()> {
        let deadline = Instant::now() + Duration::from_secs(10);
        self.qmp.borrow_mut().call("quit", &json!({}), deadline)?;
        self.process.wait()?;
        Ok(())
    }

    /// Makes the kernel start anew at once, without a word to anybody (SysRq b): what it had not
    /// written to a disk is gone. [`Self::wait`] waits for the system again.
    pub(crate) fn crash(&self) -> Result<()> {
        let arguments = json!({ "path": "/bin/sh", "arg": ["-c", "echo b > /proc/sysrq-trigger"] });
        self.agent.borrow_mut().send("guest-exec", &arguments)?;
        let deadline = Instant::now() + Duration::from_secs(60);
        self.qmp.borrow_mut().event("RESET", deadline)?;
        // Half an answer may have come from the agent that was.
        *self.agent.borrow_mut() = Control::connect(&self.folder.join("agent"))?;
        Ok(())
    }

    /// The last lines it printed.
    fn console(&self) -> String {
        let log = fs::read(self.folder.join("console.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn where_is(&self, script: &str) -> String {
        format!("{}: {}", self.spec.name, script.trim())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Adds a virtio disk: `/dev/vda` and on, in the order of these calls. QEMU need not flush,
/// as a machine of the lab is switched off but the one it runs on is not.
fn disk(command: &mut Command, path: &Path, format: &str, read_only: bool) {
    let read_only = if read_only { "on" } else { "off" };
    command.arg("-drive").arg(format!(
        "if=virtio,file={},format={format},cache=unsafe,discard=unmap,read-only={read_only}",
        path.display()
    ));
}

fn text(value: &Value) -> Result<String> {
    let bytes = BASE64.decode(value.as_str().unwrap_or_default().as_bytes())?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
