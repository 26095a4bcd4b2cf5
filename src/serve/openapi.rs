//! The description of the interface by OpenAPI 3.2, made of what the server itself reads and writes: its routes, the fields of
//! requests, and the types of answers.

use schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::{
    error::Error,
    fields,
    http::{ROUTES, Route, SchemaOf},
    request::Endpoint,
    response::EVENTS,
};

/// Describes the interface of a server, whose requests must name `model` if it is given.
pub fn document(model: Option<&str>) -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize();
    let mut schemas =
        settings.with(|settings| settings.definitions_path = "/components/schemas".into()).into_generator();
    let paths: Map<_, _> = ROUTES.iter().map(|route| path(route, &mut schemas)).collect();
    let mut schemas = schemas.take_definitions(true);
    for endpoint in [Endpoint::Completions, Endpoint::Chat] {
        let mut schema = fields::schema(endpoint);
        if let Some(model) = model {
            schema["properties"]["model"]["enum"] = json!([model]);
        }
        schemas.insert(request(endpoint).into(), schema);
    }
    json!({
        "openapi": "3.2.0",
        "info": {
            "title": "candlepower serve",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "An OpenAI-compatible interface of one model.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    })
}

/// The name of a kind of request.
fn request(endpoint: Endpoint) -> &'static str {
    match endpoint {
        Endpoint::Completions => "CompletionRequest",
        Endpoint::Chat => "ChatRequest",
    }
}

fn path(route: &Route, schemas: &mut SchemaGenerator) -> (String, Value) {
    let mut described = |kind: &str, of: SchemaOf| {
        let name = if kind == EVENTS { "itemSchema" } else { "schema" };
        json!({name: of(schemas)})
    };
    let content: Map<_, _> = route.answers.iter().map(|(kind, of)| ((*kind).into(), described(kind, *of))).collect();
    let error = schemas.subschema_for::<Error>();
    let mut responses = json!({"200": {"description": "The answer.", "content": content}});
    for status in route.errors {
        let content = json!({"application/json": {"schema": error}});
        responses[status.to_string()] = json!({"description": reason(*status), "content": content});
    }
    // Without a key, the server asks for none.
    let security = if route.needs_key { json!([{"key": []}, {}]) } else { json!([]) };
    let mut operation = json!({"summary": route.about, "responses": responses, "security": security});
    let path = route.path.replace("{*", "{");
    if path.ends_with("/{model}") {
        operation["parameters"] = json!([{
            "name": "model", "in": "path", "required": true, "schema": {"type": "string", "minLength": 1},
        }]);
    }
    let method = route.endpoint.map_or("get", |endpoint| {
        let schema = json!({"$ref": format!("#/components/schemas/{}", request(endpoint))});
        operation["requestBody"] = json!({"required": true, "content": {"application/json": {"schema": schema}}});
        "post"
    });
    (path, json!({method: operation}))
}

fn reason(status: u16) -> String {
    let status = hyper::StatusCode::from_u16(status).ok();
    status.and_then(|status| status.canonical_reason()).unwrap_or("Error").to_owned()
}
