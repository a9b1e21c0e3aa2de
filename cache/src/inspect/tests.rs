//! Whole directories: what the plan says of good ones, and how bad ones are refused.

use std::fs;

use weighlock_protocol::Sha256;
use weighlock_protocol::manifest::contract::Format;

use super::testing::{Gguf, array, safetensors, string};
use super::*;

struct Dir(tempfile::TempDir);

impl Dir {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }

    fn with(self, path: &str, content: impl AsRef<[u8]>) -> Self {
        let at = self.0.path().join(path);
        fs::create_dir_all(at.parent().expect("has a parent")).expect("mkdir");
        fs::write(at, content).expect("write");
        self
    }

    fn plan(&self) -> Result<Plan, InspectError> {
        plan(self.0.path(), &Options::default())
    }

    #[track_caller]
    fn good(&self) -> Plan {
        self.plan().expect("valid")
    }

    #[track_caller]
    fn refused(&self, parts: &[&str]) {
        let error = self.plan().expect_err("must be refused").to_string();
        for part in parts {
            assert!(error.contains(part), "{part} is not in: {error}");
        }
        assert!(!error.contains('\n'), "{error}");
    }
}

fn sharded() -> Dir {
    Dir::new()
        .with("model-00001-of-00002.safetensors", safetensors(&[("a", "BF16", 8, 16), ("n", "F32", 2, 8)]))
        .with("model-00002-of-00002.safetensors", safetensors(&[("b", "BF16", 4, 8)]))
        .with(
            "model.safetensors.index.json",
            r#"{"metadata":{"total_size":32},"weight_map":{"a":"model-00001-of-00002.safetensors","n":"model-00001-of-00002.safetensors","b":"model-00002-of-00002.safetensors"}}"#,
        )
}

fn gguf(name: &str) -> Gguf {
    Gguf::new()
        .text("general.architecture", "llama")
        .key("llama.context_length", 4, &8192u32.to_le_bytes())
        .key("general.file_type", 4, &3u32.to_le_bytes())
        .key("tokenizer.ggml.tokens", 9, &array(8, 1, &string("a")))
        .text("tokenizer.chat_template", "{{hi}}")
        .tensor(name, &[64, 2], 3, 0)
        .tensor("norm", &[8], 0, 96)
        .data(128)
}

#[test]
fn a_sharded_checkpoint_gives_its_contract_and_loading_order() {
    let template = "{{ messages }}";
    let dir = sharded()
        .with(
            "config.json",
            r#"{"architectures":["LlamaForCausalLM"],"max_position_embeddings":4096,"dtype":"bfloat16","x":Infinity,"quantization_config":{"quant_method":"gptq","bits":4,"group_size":128}}"#,
        )
        .with("generation_config.json", "{}")
        .with("tokenizer.json", "{\"t\":1}")
        .with("tokenizer_config.json", serde_json::json!({ "chat_template": template }).to_string())
        .with("README.md", "# model");
    let plan = dir.good();
    let paths: Vec<&str> = plan.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(
        paths,
        [
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
            "model.safetensors.index.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "README.md",
        ]
    );
    assert_eq!(plan.files[5].tensors.len(), 2);
    let contract = &plan.contract;
    assert_eq!(contract.format, Format::Safetensors);
    assert_eq!(contract.architecture.as_deref(), Some("LlamaForCausalLM"));
    assert_eq!((contract.param_count, contract.precision.as_deref()), (Some(14), Some("bf16")));
    assert_eq!(contract.max_seq_len, Some(4096));
    let quantization = contract.quantization.as_ref().expect("stated");
    assert_eq!(
        (quantization.method.as_str(), quantization.bits, quantization.group_size),
        ("gptq", Some(4), Some(128))
    );
    assert_eq!(contract.tokenizer_sha256, Some(Sha256::of(b"{\"t\":1}")));
    assert_eq!(contract.chat_template_sha256, Some(Sha256::of(template.as_bytes())));
    assert_eq!(contract.generation_config_sha256, Some(Sha256::of(b"{}")));
    assert!(plan.warnings.is_empty(), "{:?}", plan.warnings);
}

#[test]
fn templates_and_tokenizers_have_an_order_of_precedence() {
    let named = r#"{"chat_template":[{"name":"rag","template":"r"},{"name":"default","template":"d"}]}"#;
    let hashes = |dir: &Dir| {
        let contract = dir.good().contract;
        (contract.tokenizer_sha256, contract.chat_template_sha256)
    };
    let dir = Dir::new().with("tokenizer_config.json", named).with("notes", "x");
    assert_eq!(hashes(&dir), (None, Some(Sha256::of(b"d"))));
    let dir = dir.with("chat_template.json", r#"{"chat_template":"j"}"#);
    assert_eq!(hashes(&dir).1, Some(Sha256::of(b"j")));
    let dir = dir.with("chat_template.jinja", "file\n").with("vocab.txt", "a\nb");
    let (first, template) = hashes(&dir);
    assert_eq!(template, Some(Sha256::of(b"file\n")));
    assert!(first.is_some());
    assert_eq!(first, hashes(&dir).0);
    let dir = dir.with("vocab.txt", "a\nc");
    assert_ne!(first, hashes(&dir).0);
}

#[test]
fn an_index_must_be_right() {
    let index = "model.safetensors.index.json";
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    let map = |a: &str, n: &str, b: &str| format!(r#"{{"weight_map":{{"a":"{a}","n":"{n}","b":"{b}"}}}}"#);
    assert!(sharded().with(index, map(one, one, two)).plan().is_ok());
    sharded().with(index, map(one, one, "model-00003.safetensors")).refused(&[
        "model-00003",
        "\"b\"",
        "index.json",
    ]);
    sharded().with(index, map(one, one, "../x.safetensors")).refused(&["../x.safetensors"]);
    sharded().with(index, map(one, two, two)).refused(&[one, "\"n\""]);
    sharded()
        .with(index, format!(r#"{{"weight_map":{{"a":"{one}","b":"{two}"}}}}"#))
        .refused(&["\"n\"", "does not place"]);
    sharded()
        .with(index, format!(r#"{{"weight_map":{{"a":"{one}","n":"{one}","b":"{two}","z":"{two}"}}}}"#))
        .refused(&["\"z\"", "does not hold"]);
    sharded()
        .with(index, format!(r#"{{"weight_map":{{"a":"{one}","a":"{two}"}}}}"#))
        .refused(&["stands twice"]);
    sharded().with(index, "{\n}").refused(&["weight_map", "line 2"]);
    sharded().with("model-00003-of-00002.safetensors", safetensors(&[("c", "U8", 1, 1)])).refused(&["\"c\""]);
    let beside = sharded().with("consolidated.safetensors", safetensors(&[("a", "U8", 1, 1)])).good();
    assert_eq!(beside.contract.param_count, Some(14));
    assert_eq!(beside.warnings.len(), 1);
}

#[test]
fn a_tensor_stands_once_in_a_checkpoint() {
    let weights = safetensors(&[("w", "F32", 1, 4)]);
    let twice = Dir::new().with("model.safetensors", &weights).with("model.fp16.safetensors", &weights);
    twice.refused(&["\"w\"", "model.safetensors", "model.fp16.safetensors", "--exclude"]);
    let excluded = Options { exclude: vec!["*.fp16.*".into()], ..Options::default() };
    assert!(plan(twice.0.path(), &excluded).is_ok());
    let apart =
        Dir::new().with("vae/model.safetensors", &weights).with("unet/model.safetensors", &weights).good();
    assert_eq!(apart.contract.param_count, Some(2));
}

#[test]
fn gguf_keys_make_the_contract() {
    let plan = Dir::new().with("m.gguf", gguf("q").bytes()).good();
    let contract = &plan.contract;
    assert_eq!(contract.format, Format::Gguf);
    assert_eq!(contract.architecture.as_deref(), Some("llama"));
    assert_eq!((contract.param_count, contract.precision.as_deref()), (Some(136), Some("q4_1")));
    assert_eq!(contract.max_seq_len, Some(8192));
    let quantization = contract.quantization.as_ref().expect("stated");
    assert_eq!((quantization.bits, quantization.file_type.as_deref()), (Some(4), Some("Q4_1")));
    assert_eq!(contract.chat_template_sha256, Some(Sha256::of(b"{{hi}}")));
    assert!(contract.tokenizer_sha256.is_some());
    assert!(plan.warnings.is_empty());

    let two = Dir::new().with("a.gguf", gguf("q").bytes()).with("b.gguf", gguf("q").bytes()).good();
    assert_eq!(two.contract.param_count, Some(136));
    assert!(two.warnings[0].contains("a.gguf"), "{:?}", two.warnings);
    let part = |tensor: &str| Gguf::new().tensor(tensor, &[8], 0, 0).data(32).bytes();
    let split = |second: &str| {
        Dir::new().with("m-00001-of-00002.gguf", part("a")).with("m-00002-of-00002.gguf", part(second))
    };
    assert_eq!(split("b").good().contract.param_count, Some(16));
    split("a").refused(&["\"a\"", "m-00001", "m-00002"]);
}

#[test]
fn adapters_name_their_base() {
    let plan = Dir::new()
        .with("adapter_model.safetensors", safetensors(&[("l", "F32", 4, 16)]))
        .with(
            "adapter_config.json",
            r#"{"peft_type":"LORA","r":8,"lora_alpha":16,"target_modules":["v","q"],"base_model_name_or_path":"acme/base"}"#,
        )
        .good();
    let adapter = plan.contract.adapter.as_ref().expect("stated");
    assert_eq!((adapter.r, adapter.alpha.as_deref()), (Some(8), Some("16")));
    assert_eq!(adapter.target_modules, ["q", "v"]);
    assert_eq!(plan.contract.base_model.as_deref(), Some("acme/base"));
    assert_eq!(plan.contract.param_count, Some(4));
    assert_eq!(plan.files[0].path, "adapter_config.json");

    let gguf = Gguf::new()
        .text("general.type", "adapter")
        .text("adapter.type", "lora")
        .text("general.architecture", "llama")
        .text("general.base_model.0.name", "Base")
        .key("adapter.lora.alpha", 6, &16f32.to_le_bytes())
        .tensor("blk.0.attn_q.weight.lora_a", &[8, 2], 0, 0)
        .tensor("blk.0.attn_q.weight.lora_b", &[2, 8], 0, 64)
        .data(128);
    let plan = Dir::new().with("lora.gguf", gguf.bytes()).good();
    let adapter = plan.contract.adapter.as_ref().expect("stated");
    assert_eq!(
        (adapter.peft_type.as_str(), adapter.r, adapter.alpha.as_deref()),
        ("LORA", Some(2), Some("16"))
    );
    assert_eq!(adapter.target_modules, ["attn_q"]);
    assert_eq!(plan.contract.base_model.as_deref(), Some("Base"));
    assert_eq!(plan.files[0].kind, LayerKind::Adapter);
}

#[test]
fn doubts_are_warnings_and_lies_are_errors() {
    let weights = safetensors(&[("w", "F32", 1, 4)]);
    let plan = Dir::new()
        .with("config.json", r#"{"torch_dtype":"bfloat16"}"#)
        .with("model.safetensors", &weights)
        .with("pytorch_model.bin", "x")
        .good();
    assert_eq!(plan.contract.precision.as_deref(), Some("f32"));
    assert!(plan.warnings.iter().any(|warning| warning.contains("BF16") && warning.contains("F32")));
    assert!(plan.warnings.iter().any(|warning| warning.contains("pickle")));
    assert_eq!(plan.files.iter().filter(|file| file.kind == LayerKind::Weights).count(), 2);

    Dir::new().with("config.json", "{\n \"a\": ,}").refused(&["config.json", "line 2 column 7"]);
    Dir::new().with("config.json", "[1]").refused(&["config.json", "not an object"]);
    Dir::new().with("tokenizer_config.json", b"\xff").refused(&["tokenizer_config.json", "UTF-8"]);
    Dir::new()
        .with("sub/m.safetensors", &weights[..weights.len() - 1])
        .refused(&["sub/m.safetensors", "truncated"]);
    Dir::new().with("m.safetensors", "not one").refused(&["m.safetensors", "too short"]);
    Dir::new().with("m.gguf", "not one").refused(&["m.gguf", "does not start"]);
    Dir::new().with("m.gguf", &gguf("q").bytes()[..300]).refused(&["m.gguf", "truncated"]);
    let big = InspectConfig { json_bytes_max: 4, ..InspectConfig::default() };
    let options = Options { limits: big, ..Options::default() };
    let dir = Dir::new().with("config.json", "{     }");
    assert!(matches!(plan_with(&dir, &options), Err(InspectError::FileTooLong { .. })));
    let few = InspectConfig { tensors_max: 1, ..InspectConfig::default() };
    let options = Options { limits: few, ..Options::default() };
    let dir = Dir::new().with("a.safetensors", &weights).with("b/b.safetensors", &weights);
    assert!(matches!(plan_with(&dir, &options), Err(InspectError::Tensors { limit: 1 })));
}

fn plan_with(dir: &Dir, options: &Options) -> Result<Plan, InspectError> {
    plan(dir.0.path(), options)
}

#[test]
fn single_files_and_plain_directories_are_artifacts() {
    let dir = Dir::new().with("w.safetensors", safetensors(&[("w", "F32", 2, 8)])).with("data.csv", "a,b");
    let one = plan(&dir.0.path().join("w.safetensors"), &Options::default()).expect("one file");
    assert_eq!(one.files.len(), 1);
    assert_eq!((one.contract.param_count, one.contract.format), (Some(2), Format::Safetensors));
    let other = plan(&dir.0.path().join("data.csv"), &Options::default()).expect("any file");
    assert_eq!((other.contract.format, other.files[0].kind), (Format::Other, LayerKind::Other));
    assert_eq!(other.total_bytes(), 3);
}

#[test]
fn element_counts_do_not_overflow_around_zero() {
    assert_eq!(element_count(&[]), Some(1));
    assert_eq!(element_count(&[2, 0, 3]), Some(0));
    assert_eq!(element_count(&[u64::MAX, 0, 2]), None);
}

#[test]
fn what_only_speaks_of_an_artifact_is_left_out_at_the_top_and_nowhere_else() {
    let dir = tempfile::tempdir().expect("dir");
    for path in ["model.txt", ".weighlock/digest", "weighlock.lock", "sub/weighlock.lock"] {
        let path = dir.path().join(path);
        std::fs::create_dir_all(path.parent().expect("has a parent")).expect("dir");
        std::fs::write(path, "x").expect("written");
    }
    let plan = plan(dir.path(), &Options::default()).expect("a plan");
    let paths: Vec<&str> = plan.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths.len(), 2, "{paths:?}");
    assert!(paths.contains(&"model.txt") && paths.contains(&"sub/weighlock.lock"), "{paths:?}");
}
