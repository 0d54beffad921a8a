//! The image that every machine boots from, and which accelerator can boot it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};

/// A folder made by `tests/lab/image`.
pub(crate) struct Image {
    folder: PathBuf,
    accelerator: Accelerator,
}

/// What runs the machine's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    /// The processor itself.
    Kvm,
    /// QEMU's translator: some ten times slower, and works everywhere.
    Tcg,
}

/// A kernel that KVM runs has ended within this time; one that it cannot run hangs.
const PROBE_TIME_MAX: Duration = Duration::from_secs(10);

impl Image {
    /// Opens an image and finds out whether KVM can boot it.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let folder = folder.to_owned();
        ensure!(folder.join("disk.qcow2").exists(), "{} has no disk.qcow2", folder.display());
        let mut image = Self { folder, accelerator: Accelerator::Tcg };
        if Path::new("/dev/kvm").exists() && image.boots_with_kvm()? {
            image.accelerator = Accelerator::Kvm;
        }
        Ok(image)
    }

    /// What it will run on.
    pub(crate) const fn accelerator(&self) -> Accelerator {
        self.accelerator
    }

    /// Makes a machine's own root disk on top of the image, unless it is there.
    pub(crate) fn overlay(&self, path: &Path) -> Result<()> {
        if path.exists() {
            return Ok(());
        }
        let base = fs::canonicalize(self.folder.join("disk.qcow2"))?;
        let output = Command::new("qemu-img")
            .args(["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b"])
            .args([&base, path])
            .output()
            .context("run qemu-img")?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }

    /// QEMU with the image's kernel and nothing else. It dies with the thread that starts it,
    /// however that ends.
    pub(crate) fn qemu(&self, kernel_arguments: &str) -> Command {
        self.qemu_with(self.accelerator, kernel_arguments)
    }

    fn qemu_with(&self, accelerator: Accelerator, kernel_arguments: &str) -> Command {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64"]);
        command.args(["-nodefaults", "-no-user-config", "-display", "none", "-M", "q35"]);
        command.args(match accelerator {
            Accelerator::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accelerator::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        });
        command.arg("-kernel").arg(self.folder.join("vmlinuz"));
        command.arg("-initrd").arg(self.folder.join("initrd"));
        // Interfaces keep the kernel's names, eth0 and on. Under load an emulated timer is late,
        // which the kernel would take for a broken one, and panic.
        let arguments = "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0 no_timer_check";
        command.args(["-append", &format!("{arguments} {kernel_arguments}")]);
        command
    }

    /// A kernel without an init ends in a panic, and with `-no-reboot` QEMU then exits. Where
    /// KVM is there but cannot run a kernel (nested, on some hosts), it never gets that far.
    fn boots_with_kvm(&self) -> Result<bool> {
        let mut process = self
            .qemu_with(Accelerator::Kvm, "panic=-1 rdinit=/none init=/none")
            .args(["-m", "512", "-no-reboot"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start qemu-system-x86_64")?;
        let deadline = Instant::now() + PROBE_TIME_MAX;
        let boots = loop {
            if let Some(status) = process.try_wait()? {
                break status.success();
            }
            if Instant::now() > deadline {
                break false;
            }
            thread::sleep(Duration::from_millis(50));
        };
        let _ = process.kill();
        process.wait()?;
        Ok(boots)
    }
}
