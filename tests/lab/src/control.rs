//! JSON over a Unix socket, one object a line: QEMU's own control (QMP) and the guest agent.
//!
//! Both are documented in QEMU's manual, "QEMU Machine Protocol" and "Guest Agent Protocol".

use std::{
    io::{BufRead as _, BufReader, ErrorKind, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// One connection that takes commands and answers each.
pub(crate) struct Control {
    stream: BufReader<UnixStream>,
}

impl Control {
    /// Connects to QEMU's own socket. It must be there: QEMU makes it before it daemonises.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(path).with_context(|| format!("connect {}", path.display()))?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Sends a command and waits for its answer, whatever events come in between.
    pub(crate) fn call(
        &mut self,
        command: &str,
        arguments: &Value,
        deadline: Instant,
    ) -> Result<Value> {
        self.send(command, arguments)?;
        loop {
            let answer = self.read(deadline).with_context(|| format!("answer to {command}"))?;
            if let Some(error) = answer.get("error") {
                bail!("{command}: {error}");
            }
            if let Some(value) = answer.get("return") {
                return Ok(value.clone());
            }
        }
    }

    /// Sends a command and does not wait for an answer: whoever would give it ends by it.
    pub(crate) fn send(&mut self, command: &str, arguments: &Value) -> Result<()> {
        let mut line = json!({ "execute": command, "arguments": arguments }).to_string();
        line.push('\n');
        Ok(self.stream.get_mut().write_all(line.as_bytes())?)
    }

    /// Waits for an event.
    pub(crate) fn event(&mut self, name: &str, deadline: Instant) -> Result<()> {
        while self.read(deadline).with_context(|| format!("event {name}"))?["event"] != name {}
        Ok(())
    }

    /// Waits until the agent in the guest answers. What it answered to an earlier connection
    /// is skipped: each sync has its own number.
    pub(crate) fn synchronise(&mut self, id: u32, deadline: Instant) -> Result<()> {
        let mut answer = self.call("guest-sync", &json!({ "id": id }), deadline)?;
        while answer != json!(id) {
            answer = self.read(deadline)?.get("return").cloned().unwrap_or_default();
        }
        Ok(())
    }

    fn read(&mut self, deadline: Instant) -> Result<Value> {
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no answer in time");
            }
            // Short reads, so that the deadline holds to a second.
            self.stream.get_ref().set_read_timeout(Some(left.min(Duration::from_secs(1))))?;
            match self.stream.read_until(b'\n', &mut line) {
                Ok(0) => bail!("the connection is closed"),
                Ok(_) if line.ends_with(b"\n") => break,
                Ok(_) => {}
                Err(error)
                    if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(serde_json::from_slice(&line)?)
    }
}
