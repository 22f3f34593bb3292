//! Names of models: what the environment says about the hub and its cache, and which files on this machine a name means.
//! Nothing is fetched here; `download` does that.

use std::path::{Path, PathBuf};

use hub::catalog::{Entry, Kind};
use hub::{Cache, Reference, Settings};
use ltx::{Error, Result};

use crate::args::{Generate, RecipeChoice};
use crate::toy::{self, Toy};

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

fn on(name: &str) -> bool {
    variable(name)
        .is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str()))
}

/// A variable that names a place, where `~` is the user's folder.
fn place(name: &str) -> Option<PathBuf> {
    let value = variable(name)?;
    match (value.strip_prefix("~/"), std::env::home_dir()) {
        (Some(rest), Some(home)) => Some(home.join(rest)),
        _ => Some(value.into()),
    }
}

/// The folder of the hub's tools on this machine.
fn home() -> PathBuf {
    place("HF_HOME").unwrap_or_else(|| {
        let caches = place("XDG_CACHE_HOME").or_else(|| Some(std::env::home_dir()?.join(".cache")));
        caches.unwrap_or_else(|| PathBuf::from(".")).join("huggingface")
    })
}

fn cache_folder() -> PathBuf {
    place("HF_HUB_CACHE").or_else(|| place("HUGGINGFACE_HUB_CACHE")).unwrap_or_else(|| home().join("hub"))
}

/// The hub's cache on this machine, where the official tools have it.
pub fn cache() -> Cache {
    Cache::new(cache_folder())
}

/// Hub, cache and token as the official tools would have them; `token` goes before theirs.
pub fn settings(token: Option<&str>) -> Result<Settings> {
    if on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE") {
        return Err(Error::request("HF_HUB_OFFLINE forbids to ask the hub", "unset it to download"));
    }
    let mut settings = Settings::new(cache_folder());
    if let Some(endpoint) = variable("HF_ENDPOINT") {
        settings.endpoint = endpoint.trim().trim_end_matches('/').into();
    }
    settings.certificates = place("SSL_CERT_FILE").or_else(|| place("REQUESTS_CA_BUNDLE"));
    let stored = || {
        if on("HF_HUB_DISABLE_IMPLICIT_TOKEN") {
            return None;
        }
        let file =
            || std::fs::read_to_string(place("HF_TOKEN_PATH").unwrap_or_else(|| home().join("token"))).ok();
        variable("HF_TOKEN").or_else(|| variable("HUGGING_FACE_HUB_TOKEN")).or_else(file)
    };
    let token = token.map(str::to_string).or_else(stored).map(|token| token.trim().to_string());
    settings.token = token.filter(|token| !token.is_empty());
    Ok(settings)
}

/// Where LTX-2-MLX has its model and its text encoder, seen from the folder that it is run in.
const ORIGINAL_MODEL: &str = "weights/ltx-2/ltx-2-19b-distilled.safetensors";
const ORIGINAL_GEMMA: &str = "weights/gemma-3-12b";

/// The files or folders that are meant by `--model`; without any the original's, if it is there.
pub fn models(given: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let original = Path::new(ORIGINAL_MODEL);
    match given {
        [] if original.is_file() => Ok(vec![original.into()]),
        [] => Err(Error::request(
            format!("no model is named, and there is no {ORIGINAL_MODEL}"),
            "give --model a file, a folder, or a name that `ltx download --list` shows",
        )),
        given => given.iter().map(|path| resolve(path)).collect(),
    }
}

/// The text encoder that is meant by `--gemma`; without it the original's, or the downloaded one, if it is there.
pub fn gemma(given: Option<&Path>) -> Result<Option<PathBuf>> {
    let original = || Some(PathBuf::from(ORIGINAL_GEMMA)).filter(|folder| folder.is_dir());
    match given {
        Some(path) => resolve(path).map(Some),
        None => Ok(original().or_else(|| Entry::find("gemma")?.path(&cache()))),
    }
}

/// [`gemma`], where nothing can be done without it.
pub fn needed_gemma(given: Option<&Path>) -> Result<PathBuf> {
    gemma(given)?.ok_or_else(|| {
        Error::request(
            "there is no text encoder",
            "give the folder of Gemma 3 with --gemma, or fetch it: `ltx download gemma`",
        )
    })
}

/// The LoRA file or adapter folder that is meant by a path, a short name, or a name on the hub.
pub fn lora(name: &str) -> Result<PathBuf> {
    let path = Path::new(name);
    let found = if path.exists() || Entry::find(name).is_some() || Reference::looks_like(name) {
        resolve(path)?
    } else {
        path.into()
    };
    if found.exists() {
        return Ok(found);
    }
    Err(Error::request(
        format!("there is no LoRA `{name}`"),
        "give a file, a name that `ltx lora list` shows, or owner/repo:file; a prompt goes before --lora",
    ))
}

/// What a path or a name means: a file or folder that is here, the cached one of a known name or of `owner/repo[:file]`,
/// or the path itself, for whoever reads it to complain about.
pub fn resolve(path: &Path) -> Result<PathBuf> {
    if is_toy(path) {
        return if toy::is_built_in() { toy::unpack() } else { Err(no_model()) };
    }
    let Some(text) = path.to_str().filter(|_| !path.exists()) else { return Ok(path.into()) };
    if let Some(entry) = Entry::find(text) {
        return entry.path(&cache()).ok_or_else(|| absent(&[entry.name]));
    }
    if let Ok(reference) = Reference::parse(text) {
        let parent = path.parent().is_some_and(|folder| folder.is_dir());
        return match cache().find(&reference) {
            Some(found) => Ok(found),
            None if parent
                || reference.file.is_none()
                    && path.extension().is_some_and(|ending| ending == "safetensors") =>
            {
                Ok(path.into())
            }
            None => Err(Error::request(
                format!("`{text}` is neither a file here nor in the hub's cache"),
                format!(
                    "check the path; if it is meant as a name on the model hub, `ltx download {text}` fetches it"
                ),
            )),
        };
    }
    if text.contains('/')
        || Path::new(text)
            .extension()
            .is_some_and(|ending| ["safetensors", "json", "gguf"].iter().any(|known| ending == *known))
    {
        return Ok(path.into());
    }
    Err(unknown(text))
}

/// Whether this is the name of the built-in model. A file or folder of that name is `./toy`, unless there is no such model.
fn is_toy(path: &Path) -> bool {
    path == Path::new(toy::NAME) && (toy::is_built_in() || !path.exists())
}

/// There is nothing of this name.
pub fn unknown(name: &str) -> Error {
    let remedy = match Entry::like(name).as_slice() {
        [] => "`ltx download --list` shows the names; a file, or owner/repo:file on the hub, will do too"
            .to_string(),
        names => format!("is {} meant? `ltx download --list` shows all names", names.join(" or ")),
    };
    Error::request(format!("there is no file and no model `{name}`"), remedy)
}

/// Nothing says which model is meant, and the program's own is not there or would not fit.
fn no_model() -> Error {
    let problem = if toy::is_built_in() {
        "there is no --model for these files: they would not fit the built-in toy"
    } else {
        "there is no --model, and this program was built without a model of its own"
    };
    Error::request(
        problem,
        "give files with --model, or a name: `ltx download 2.3-distilled` gets the model for --model 2.3-distilled",
    )
}

fn absent(names: &[&str]) -> Error {
    Error::request(
        format!(
            "{} {} not on this machine",
            names.join(" and "),
            if names.len() == 1 { "is" } else { "are" }
        ),
        format!(
            "`ltx download {}` fetches {}",
            names.join(" "),
            if names.len() == 1 { "it" } else { "them" }
        ),
    )
}

/// The files of a generation.
#[derive(Debug)]
pub struct Files {
    pub models: Vec<PathBuf>,
    pub gemma: Option<PathBuf>,
    pub spatial_upsampler: Option<PathBuf>,
    pub distilled_lora: Option<PathBuf>,
    /// The built-in model, if that is what is used.
    pub toy: Option<Toy>,
}

/// Names become files. Where the model itself is a known name, what it needs besides and was not given is taken from the
/// cache too.
pub fn files(arguments: &Generate, distilled_lora: Option<PathBuf>) -> Result<Files> {
    let named = |path: &PathBuf| {
        path.to_str()
            .filter(|_| !path.exists())
            .and_then(Entry::find)
            .filter(|entry| entry.kind == Kind::Checkpoint)
    };
    let mut files = Files {
        models: Vec::new(),
        gemma: None,
        spatial_upsampler: arguments.spatial_upsampler.as_deref().map(resolve).transpose()?,
        distilled_lora,
        toy: None,
    };
    let original = arguments.model.is_empty() && Path::new(ORIGINAL_MODEL).is_file();
    if !original && arguments.model.iter().all(|path| is_toy(path)) {
        // Without a --model, files for another one are a sign that it was forgotten.
        if !toy::is_built_in() || arguments.model.is_empty() && !arguments.uses_default_model() {
            return Err(no_model());
        }
        let toy = Toy::open()?;
        files.models = vec![toy.model.clone()];
        files.gemma = match arguments.gemma.as_deref() {
            Some(path) => Some(resolve(path)?),
            None => Some(toy.gemma.clone()),
        };
        files.spatial_upsampler.get_or_insert_with(|| toy.spatial_upsampler.clone());
        files.toy = Some(toy);
        return Ok(files);
    }
    let mut missing: Vec<&'static str> = Vec::new();
    let encodes = arguments.embedding.is_none() && !arguments.dummy_text && !arguments.placeholder;
    if encodes || arguments.gemma.is_some() {
        files.gemma = match gemma(arguments.gemma.as_deref()) {
            // An interrupted run may have encoded its prompt; if not, the error comes when it is to be.
            Err(_) if arguments.resume => arguments.gemma.clone(),
            found => found?,
        };
    }
    if let Some(model) = arguments.model.iter().find_map(named) {
        if arguments.model.len() == 1 && model.path(&cache()).is_none() {
            // Its download brings the rest along.
            return Err(absent(&[model.name]));
        }
        let mut need = |name: &str, file: &mut Option<PathBuf>| {
            if let (None, Some(entry)) = (&file, Entry::find(name)) {
                *file = entry.path(&cache());
                missing.extend(file.is_none().then_some(entry.name));
            }
        };
        if encodes && !arguments.resume {
            need("gemma", &mut files.gemma);
        }
        let distilled = model.name.contains("distilled");
        let stages = arguments.recipe.map_or(distilled, |recipe| recipe != RecipeChoice::OneStage);
        if stages && !arguments.placeholder {
            need(&format!("{}-upsampler", model.generation()), &mut files.spatial_upsampler);
            if !distilled {
                need(&format!("distilled-{}", model.generation()), &mut files.distilled_lora);
            }
        }
    }
    if !missing.is_empty() {
        return Err(absent(&missing));
    }
    files.models = models(&arguments.model)?;
    Ok(files)
}

/// A failure between here and the hub, as the program reports failures.
pub fn error(error: hub::Error) -> Error {
    let remedy = error.remedy().unwrap_or_default();
    match error {
        hub::Error::Request { problem, .. } => Error::request(problem, remedy),
        hub::Error::Cancelled => Error::Cancelled,
        error => Error::machine(error.to_string(), remedy),
    }
}
