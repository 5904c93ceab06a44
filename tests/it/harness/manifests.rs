//! The manifests of `deploy/kubernetes`, read.

use std::path::Path;

use serde_json::Value;

/// The repository's file `name`.
pub fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every object of the manifests, in the order in which `kubectl apply -f` takes them.
pub fn objects() -> Vec<Value> {
    objects_in("deploy/kubernetes")
}

/// The same of a folder of the repository.
pub fn objects_in(path: &str) -> Vec<Value> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    let mut names: Vec<_> = std::fs::read_dir(folder)
        .expect("the manifests")
        .map(|entry| entry.expect("a file").file_name().into_string().expect("text"))
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    names.sort();
    let read = |name: &String| {
        let text = file(&format!("{path}/{name}"));
        serde_saphyr::from_multiple::<Value>(&text)
            .unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    names.iter().flat_map(read).collect()
}

/// The object of this kind.
pub fn object<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).expect(kind)
}

/// A list of texts.
pub fn texts(value: &Value) -> Vec<String> {
    let list = value.as_array().into_iter().flatten();
    list.map(|one| one.as_str().expect("a text").to_owned()).collect()
}
