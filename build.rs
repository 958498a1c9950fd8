//! Generates the agent's messages and client from `src/agent/proto` with a parser in Rust.

use std::path::PathBuf;
use std::{env, fs};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = "src/agent/proto";
    println!("cargo:rerun-if-changed={folder}");
    let inputs: Vec<PathBuf> = ["agent", "health", "types", "oci", "csi"]
        .iter()
        .map(|name| PathBuf::from(format!("{folder}/{name}.proto")))
        .collect();
    let out = PathBuf::from(env::var("OUT_DIR")?).join("proto");
    fs::create_dir_all(&out)?;
    if !inputs.iter().all(|input| input.exists()) {
        return Ok(());
    }
    ttrpc_codegen::Codegen::new()
        .out_dir(&out)
        .inputs(&inputs)
        .include(folder)
        .rust_protobuf()
        .customize(ttrpc_codegen::Customize { async_client: true, gen_mod: true, ..Default::default() })
        .run()?;
    Ok(())
}
