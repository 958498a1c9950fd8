//! Task.CloseIO and Task.ResizePty.

use crate::error::{Error, Result};
use crate::ids::ProcessId;
use crate::lifecycle::process::Phase;
use crate::pod::Pod;

impl Pod {
    /// No more input will come: what was written before still goes through first.
    pub(crate) fn close_io(&self, id: &ProcessId) -> Result<()> {
        self.lock().process(id)?.close_stdin.send_replace(true);
        Ok(())
    }

    /// Sizes a terminal, in characters.
    pub(crate) async fn resize(&self, id: &ProcessId, columns: u32, rows: u32) -> Result<()> {
        let phase = {
            let state = self.lock();
            let process = state.process(id)?;
            if !process.stdio.terminal {
                return Err(Error::precondition(format!("{id}: has no terminal to resize")));
            }
            process.phase()
        };
        // An exec that is not started has no terminal in the guest yet; its client resizes again.
        if id.exec.is_some() && phase == Phase::Created {
            return Ok(());
        }
        self.guest()?.agent.resize_terminal(id, columns, rows).await
    }
}
