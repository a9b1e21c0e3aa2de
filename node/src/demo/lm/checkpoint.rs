//! The checkpoint directory: sharded safetensors with config and tokenizer, written and read back.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::Error;
use super::config_file::{ConfigFile, Generation};
use super::model::{Model, Tensor};
use super::tokenizer::{tokenizer_config_json, tokenizer_json};

/// Greatest size of a shard's data in bytes, unless one tensor is larger. Small, so that a small model has several.
pub const SHARD_BYTES_MAX: usize = 4 << 20;

const CONFIG_FILE: &str = "config.json";
const INDEX_FILE: &str = "model.safetensors.index.json";
const SINGLE_FILE: &str = "model.safetensors";
/// Most bytes of a JSON file or header that is read.
const JSON_BYTES_MAX: usize = 1 << 20;

/// Writes a model into a new or empty directory, in two or more shards.
///
/// The same model gives the same bytes in every file. A tensor is never split, so a shard may exceed
/// `shard_bytes_max` when a single tensor does.
pub fn save(dir: &Path, model: &Model, shard_bytes_max: usize) -> Result<(), Error> {
    create_empty(dir)?;
    let config = ConfigFile::of(model.config());
    write(&dir.join(CONFIG_FILE), pretty(&config))?;
    write(&dir.join("generation_config.json"), pretty(&Generation::default()))?;
    write(&dir.join("tokenizer.json"), tokenizer_json())?;
    write(&dir.join("tokenizer_config.json"), tokenizer_config_json(model.config().context))?;

    let shards = shards(model.tensors(), shard_bytes_max);
    let mut weight_map = BTreeMap::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        let path = dir.join(&name);
        let bytes = shard_bytes(shard).map_err(|reason| Error::Broken { path: path.clone(), reason })?;
        write(&path, bytes)?;
        weight_map.extend(shard.iter().map(|tensor| (tensor.name.clone(), name.clone())));
    }
    let total_size = model.tensors().iter().map(byte_len).sum();
    let index = Index { metadata: IndexMetadata { total_size }, weight_map };
    write(&dir.join(INDEX_FILE), pretty(&index))
}

/// Reads a model from a checkpoint directory: `config.json` and the shards that the index names, or one
/// `model.safetensors`.
///
/// Refuses another architecture, another dtype than F32, tensors that are missing, unexpected, of the wrong shape or
/// not finite, and shards that disagree with the index. Reads no more than the config calls for.
pub fn load(dir: &Path) -> Result<Model, Error> {
    let path = dir.join(CONFIG_FILE);
    let config: ConfigFile = read_json(&path)?;
    let config = config.settings().map_err(|reason| Error::Broken { path, reason })?;
    config.check()?;
    let shapes = config.tensor_shapes();

    let index_path = dir.join(INDEX_FILE);
    let index: Option<Index> = match index_path.try_exists() {
        Ok(false) => None,
        _ => Some(read_json(&index_path)?),
    };
    let weight_map = match index {
        Some(index) => index.weight_map,
        None => shapes.iter().map(|(name, _)| (name.clone(), SINGLE_FILE.to_owned())).collect(),
    };
    let mut shards: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (tensor, shard) in &weight_map {
        if Path::new(shard).file_name() != Some(shard.as_ref()) {
            let reason =
                format!("tensor {tensor} is said to be in {shard:?}, which is not a plain file name");
            return Err(Error::Broken { path: index_path, reason });
        }
        shards.entry(shard).or_default().push(tensor);
    }
    let data_bytes_max = config.parameters() * size_of::<f32>();
    let mut tensors = Vec::new();
    for (shard, names) in shards {
        let path = dir.join(shard);
        let bytes = read_limited(&path, data_bytes_max + JSON_BYTES_MAX)?;
        let read = read_shard(&bytes, &names).map_err(|reason| Error::Broken { path, reason })?;
        tensors.extend(read);
    }
    Model::from_tensors(config, tensors)
}

/// `model.safetensors.index.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Index {
    metadata: IndexMetadata,
    weight_map: BTreeMap<String, String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct IndexMetadata {
    total_size: usize,
}

fn byte_len(tensor: &Tensor) -> usize {
    tensor.data.len() * size_of::<f32>()
}

/// Tensors in order, a new shard where the next would not fit. Half of the total at most, so that there are at least two.
fn shards(tensors: &[Tensor], shard_bytes_max: usize) -> Vec<Vec<&Tensor>> {
    let total: usize = tensors.iter().map(byte_len).sum();
    let limit = shard_bytes_max.min(total.div_ceil(2));
    let mut shards: Vec<Vec<&Tensor>> = Vec::new();
    let mut filled = usize::MAX;
    for tensor in tensors {
        match shards.last_mut() {
            Some(shard) if filled + byte_len(tensor) <= limit => {
                shard.push(tensor);
                filled += byte_len(tensor);
            }
            _ => {
                shards.push(vec![tensor]);
                filled = byte_len(tensor);
            }
        }
    }
    shards
}

fn shard_bytes(tensors: &[&Tensor]) -> Result<Vec<u8>, String> {
    let encoded: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| tensor.data.iter().flat_map(|value| value.to_le_bytes()).collect())
        .collect();
    let views = tensors
        .iter()
        .zip(&encoded)
        .map(|(tensor, bytes)| {
            Ok((tensor.name.as_str(), TensorView::new(Dtype::F32, tensor.shape.clone(), bytes)?))
        })
        .collect::<Result<Vec<_>, safetensors::SafeTensorError>>()
        .map_err(|error| error.to_string())?;
    // One key only: the order of several would be that of a hash map.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(metadata)).map_err(|error| error.to_string())
}

/// The tensors of one shard, which must be those that `names` (from the index) promises.
fn read_shard(bytes: &[u8], names: &[&str]) -> Result<Vec<Tensor>, String> {
    let shard = SafeTensors::deserialize(bytes).map_err(|error| format!("not valid safetensors: {error}"))?;
    if let Some(name) = shard.names().into_iter().find(|name| !names.contains(name)) {
        return Err(format!("it holds tensor {name:?}, which is not expected in this file"));
    }
    names
        .iter()
        .map(|name| {
            let view = shard.tensor(name).map_err(|_| format!("tensor {name:?} is not in it"))?;
            if view.dtype() != Dtype::F32 {
                return Err(format!("tensor {name:?} is {:?}, this reader takes F32 only", view.dtype()));
            }
            let (values, _) = view.data().as_chunks::<4>();
            let data = values.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            Ok(Tensor { name: (*name).to_owned(), shape: view.shape().to_vec(), data })
        })
        .collect()
}

fn pretty(value: &impl Serialize) -> String {
    let json = serde_json::to_string_pretty(value).expect("a struct of numbers and strings is valid JSON");
    json + "\n"
}

fn create_empty(dir: &Path) -> Result<(), Error> {
    let io = |action| move |source| Error::Io { action, path: dir.to_owned(), source };
    std::fs::create_dir_all(dir).map_err(io("create"))?;
    match std::fs::read_dir(dir).map_err(io("read"))?.next() {
        None => Ok(()),
        Some(_) => Err(Error::NotEmpty { path: dir.to_owned() }),
    }
}

pub(super) fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<(), Error> {
    std::fs::write(path, content).map_err(|source| Error::Io {
        action: "write",
        path: path.to_owned(),
        source,
    })
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T, Error> {
    let bytes = read_limited(path, JSON_BYTES_MAX)?;
    serde_json::from_slice(&bytes).map_err(|error| Error::Broken {
        path: path.to_owned(),
        reason: format!("not the JSON we need: {error}"),
    })
}

fn read_limited(path: &Path, bytes_max: usize) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(bytes_max as u64 + 1).read_to_end(&mut bytes))
        .map_err(|source| Error::Io { action: "read", path: path.to_owned(), source })?;
    if bytes.len() > bytes_max {
        let reason = format!("it is larger than the {bytes_max} bytes that it can need");
        return Err(Error::Broken { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tempfile::TempDir;

    use super::super::model::Config;
    use super::*;

    const CONFIG: Config = Config { context: 3, hidden: 6, ngram_max: 3, ngram_buckets: 40 };
    const FIRST: &str = "model-00001-of-00004.safetensors";

    fn saved() -> (TempDir, Model) {
        let model = Model::new(CONFIG, 1).expect("settings are fine");
        let dir = tempfile::tempdir().expect("a directory");
        save(dir.path(), &model, 8192).expect("written");
        (dir, model)
    }

    fn edit(dir: &TempDir, file: &str, change: impl FnOnce(&mut Value)) {
        let path = dir.path().join(file);
        let mut json = serde_json::from_slice(&std::fs::read(&path).expect("read")).expect("JSON");
        change(&mut json);
        std::fs::write(&path, json.to_string()).expect("written");
    }

    fn refusal(dir: &TempDir) -> String {
        load(dir.path()).expect_err("must be refused").to_string()
    }

    #[test]
    fn what_was_saved_is_loaded() {
        let (dir, model) = saved();
        assert_eq!(load(dir.path()).expect("loads"), model);
    }

    #[test]
    fn shards_are_aligned_keep_to_the_limit_and_hold_every_tensor_once() {
        let (dir, model) = saved();
        let index: Index = read_json(&dir.path().join(INDEX_FILE)).expect("an index");
        assert_eq!(index.weight_map.len(), model.tensors().len());
        assert_eq!(index.metadata.total_size, 4 * CONFIG.parameters());
        let mut data_bytes = 0;
        for name in index.weight_map.values().collect::<std::collections::BTreeSet<_>>() {
            let bytes = std::fs::read(dir.path().join(name)).expect("a shard");
            let (header, _) = SafeTensors::read_metadata(&bytes).expect("valid");
            assert_eq!(header % 8, 0, "{name}");
            data_bytes += bytes.len() - 8 - header;
            assert!(bytes.len() - 8 - header <= 8192, "{name}");
        }
        assert_eq!(data_bytes, index.metadata.total_size);
        assert!(dir.path().join(FIRST).exists());
    }

    #[test]
    fn there_are_several_shards_even_when_one_would_do() {
        let model = Model::new(CONFIG, 1).expect("settings are fine");
        assert!(shards(model.tensors(), usize::MAX).len() >= 2);
        assert_eq!(shards(model.tensors(), 0).len(), model.tensors().len());
    }

    #[test]
    fn one_file_without_an_index_is_read_too() {
        let model = Model::new(CONFIG, 1).expect("settings are fine");
        let dir = tempfile::tempdir().expect("a directory");
        let tensors: Vec<&Tensor> = model.tensors().iter().collect();
        write(&dir.path().join(SINGLE_FILE), shard_bytes(&tensors).expect("encoded")).expect("written");
        write(&dir.path().join(CONFIG_FILE), pretty(&ConfigFile::of(&CONFIG))).expect("written");
        assert_eq!(load(dir.path()).expect("loads"), model);
    }

    #[test]
    fn a_directory_with_something_in_it_is_not_written_to() {
        let (dir, model) = saved();
        let error = save(dir.path(), &model, 8192).expect_err("not empty");
        assert!(matches!(error, Error::NotEmpty { .. }), "{error}");
    }

    #[test]
    fn another_config_is_refused() {
        let (dir, _) = saved();
        edit(&dir, CONFIG_FILE, |config| config["hidden_size"] = 7.into());
        assert!(
            refusal(&dir).contains("has shape [256, 6], the config calls for [256, 7]"),
            "{}",
            refusal(&dir)
        );
        edit(&dir, CONFIG_FILE, |config| config["hidden_size"] = 1_000_000.into());
        assert!(refusal(&dir).contains("hidden is 1000000, allowed is 1 to 4096"), "{}", refusal(&dir));
        edit(&dir, CONFIG_FILE, |config| config["model_type"] = "llama".into());
        assert!(refusal(&dir).contains("model_type is \"llama\""), "{}", refusal(&dir));
        std::fs::write(dir.path().join(CONFIG_FILE), "{").expect("written");
        assert!(refusal(&dir).contains("config.json is not part of a checkpoint"), "{}", refusal(&dir));
    }

    #[test]
    fn an_index_that_lies_is_refused() {
        let lies: [(&str, &str, &str); 3] = [
            (
                "context.1.weight",
                "model-00004-of-00004.safetensors",
                "tensor \"context.1.weight\" is not in it",
            ),
            ("context.1.weight", "../elsewhere.safetensors", "not a plain file name"),
            ("more.weight", FIRST, "tensor \"more.weight\" is not in it"),
        ];
        for (tensor, file, complaint) in lies {
            let (dir, _) = saved();
            edit(&dir, INDEX_FILE, |index| index["weight_map"][tensor] = file.into());
            assert!(refusal(&dir).contains(complaint), "{}", refusal(&dir));
        }
        let (dir, _) = saved();
        edit(&dir, INDEX_FILE, |index| {
            index["weight_map"].as_object_mut().expect("a map").remove("ngram.2.weight");
        });
        assert!(refusal(&dir).contains("which is not expected in this file"), "{}", refusal(&dir));
        let (dir, _) = saved();
        std::fs::remove_file(dir.path().join(FIRST)).expect("removed");
        assert!(refusal(&dir).starts_with("cannot read"), "{}", refusal(&dir));
    }

    #[test]
    fn a_broken_shard_is_refused() {
        let (dir, model) = saved();
        let path = dir.path().join(FIRST);
        let whole = std::fs::read(&path).expect("read");
        for broken in [&whole[..whole.len() - 1], &whole[..20], &[]] {
            std::fs::write(&path, broken).expect("written");
            assert!(refusal(&dir).contains("not valid safetensors"), "{}", refusal(&dir));
        }
        std::fs::write(&path, vec![0; 4 * CONFIG.parameters() + JSON_BYTES_MAX + 1]).expect("written");
        assert!(refusal(&dir).contains("it is larger than"), "{}", refusal(&dir));

        let mut nan = whole.clone();
        let last = nan.len() - 4;
        nan[last..].copy_from_slice(&f32::NAN.to_le_bytes());
        std::fs::write(&path, nan).expect("written");
        assert!(refusal(&dir).contains("not finite at element"), "{}", refusal(&dir));

        let first = &model.tensors()[0];
        let bytes = vec![0; first.data.len() * 2];
        let view = TensorView::new(Dtype::F16, first.shape.clone(), &bytes).expect("fits");
        let half = safetensors::serialize([(first.name.as_str(), view)], None).expect("encoded");
        std::fs::write(&path, half).expect("written");
        assert!(refusal(&dir).contains("is F16, this reader takes F32 only"), "{}", refusal(&dir));
    }
}
