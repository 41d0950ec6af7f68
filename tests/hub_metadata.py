"""The Hub's rules for the metadata of a README.md that concern the models and Spaces of mscl_hf."""

import re

import yaml

LICENSES = set(
    "apache-2.0 mit bsd-2-clause bsd-3-clause cc0-1.0 cc-by-4.0 cc-by-sa-4.0 cc-by-nc-4.0 gpl-3.0 lgpl-3.0 agpl-3.0 other unknown".split()
)
PIPELINE_TAGS = set("image-segmentation image-classification image-feature-extraction mask-generation object-detection other".split())
COLORS = set("red yellow green blue indigo purple pink gray".split())


def card_problems(text: str, repo_type: str = "model") -> tuple[list[str], list[str]]:
    """Return (errors, warnings) of the metadata at the top of a README.md."""
    block = re.match(r"\s*---[ \t]*\n(.*?)\n---[ \t]*(\n|$)", text, re.DOTALL)
    if block is None:
        return (["Missing configuration in README.md"] if repo_type == "space" else []), ["empty or missing yaml metadata in repo card"]
    try:
        card = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"YAML metadata is invalid: {' '.join(str(error).split())}"], []
    if not isinstance(card, dict):
        return ["YAML metadata must be an object"], []
    errors, warnings = [], []
    texts = ("library_name", "pipeline_tag", "title", "emoji", "app_file", "sdk_version", "python_version", "license_name", "license_link")
    errors += [f'"{key}" must be a string' for key in (*texts, "short_description") if not isinstance(card.get(key, ""), str)]
    errors += [f'"{key}" must be a boolean' for key in ("pinned", "inference") if not isinstance(card.get(key, False), bool)]
    for key in ("tags", "datasets", "metrics", "models", "language", "license", "base_model", "widget"):
        values, single = card.get(key, []), key in ("language", "license", "base_model")
        if single and isinstance(values, str):
            values = [values]
        if not isinstance(values, list):
            errors.append(f'"{key}" must be an array')
        elif key != "widget":
            errors += [f'"{key}[{i}]" must be a string' for i, value in enumerate(values) if not isinstance(value, str)]
            if key in ("datasets", "models", "base_model"):
                wrong = [value for value in values if not re.fullmatch(r"[\w-][\w.-]*(/[\w.-]+)?", str(value))]
                errors += [f'"{key}" with value "{value}" is not valid: use a name on the Hub' for value in wrong]
            if key == "license":
                errors += [f'"license" must be one of {sorted(LICENSES)}' for value in values if value not in LICENSES]
    if card.get("license") == "other" and "license_name" not in card:
        warnings.append('"license_name" should be given with license: other')
    if isinstance(card.get("pipeline_tag"), str) and card["pipeline_tag"] not in PIPELINE_TAGS:
        warnings.append(f'The pipeline tag "{card["pipeline_tag"]}" is not in the official list: {sorted(PIPELINE_TAGS)}')
    if repo_type == "space":
        errors += ['"sdk" must be one of gradio, docker, static'] * (card.get("sdk") not in ("gradio", "docker", "static"))
        for key in ("colorFrom", "colorTo"):
            errors += [f'"{key}" must be one of {sorted(COLORS)}'] * (card.get(key, "red") not in COLORS)
        if len(str(card.get("short_description", ""))) > 60:
            errors.append('"short_description" length must be less than or equal to 60 characters long')
    return errors + _model_index_problems(card.get("model-index", [])), warnings


def _model_index_problems(index) -> list[str]:
    if not isinstance(index, list):
        return ['"model-index" must be an array']
    errors = []
    for i, model in enumerate(index):
        if not isinstance(model, dict) or not isinstance(model.get("name"), str):
            errors.append(f'"model-index[{i}].name" is required')
            continue
        if not isinstance(model.get("results"), list):
            errors.append(f'"model-index[{i}].results" is required')
            continue
        for j, result in enumerate(model["results"]):
            where = f"model-index[{i}].results[{j}]"
            for part, keys in (("task", ("type",)), ("dataset", ("name", "type"))):
                value = result.get(part) if isinstance(result, dict) else None
                errors += [f'"{where}.{part}.{key}" is required' for key in keys if not isinstance((value or {}).get(key), str)]
            metrics = result.get("metrics") if isinstance(result, dict) else None
            if not isinstance(metrics, list) or not metrics:
                errors.append(f'"{where}.metrics" is required')
            for k, metric in enumerate(metrics or []):
                if not isinstance(metric.get("type"), str):
                    errors.append(f'"{where}.metrics[{k}].type" is required')
                if "value" not in metric or metric["value"] is None or metric["value"] != metric["value"]:
                    errors.append(f'"{where}.metrics[{k}].value" is required')
    return errors
