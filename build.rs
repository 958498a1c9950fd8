//! Generates the messages of the agent and of the shim, and the agent's client, from their `proto` folders with a
//! parser in Rust.

use std::path::{Path, PathBuf};
use std::{env, fs};

const AGENT: &str = "src/agent/proto";
const AGENT_FILES: [&str; 5] = ["agent", "health", "types", "oci", "csi"];
const AGENT_MODULES: [&str; 7] = ["agent", "csi", "health", "oci", "types", "agent_ttrpc", "health_ttrpc"];

const SHIM: &str = "src/shim/proto";
const SHIM_FILES: [&str; 2] = ["cri", "runtimeoptions"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> Result<()> {
    let out = PathBuf::from(env::var("OUT_DIR")?);
    generate(AGENT, &AGENT_FILES, &AGENT_MODULES, &out.join("agent"))?;
    generate(SHIM, &SHIM_FILES, &SHIM_FILES, &out.join("shim"))
}

/// Writes the generated modules and `messages.rs`, which names them, into `out`.
fn generate(folder: &str, files: &[&str], modules: &[&str], out: &Path) -> Result<()> {
    println!("cargo:rerun-if-changed={folder}");
    fs::create_dir_all(out)?;
    let inputs: Vec<PathBuf> =
        files.iter().map(|name| Path::new(folder).join(format!("{name}.proto"))).collect();
    ttrpc_codegen::Codegen::new()
        .out_dir(out)
        .inputs(&inputs)
        .include(folder)
        .rust_protobuf()
        // Without reflection, which nothing here needs: 0.8 MB less.
        .rust_protobuf_customize(ttrpc_codegen::ProtobufCustomize::default().lite_runtime(true))
        .customize(ttrpc_codegen::Customize { async_client: true, ..Default::default() })
        .run()?;
    // The generated files carry inner attributes, which `include!` cannot: name them as modules.
    let modules: String = modules
        .iter()
        .map(|m| format!("#[path = {:?}]\npub mod {m};\n", out.join(format!("{m}.rs"))))
        .collect();
    fs::write(out.join("messages.rs"), modules)?;
    Ok(())
}
