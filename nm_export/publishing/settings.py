"""Where and how a recipe is published, options included: one answer for every command and for Python."""

from pydantic import ValidationError

from nm_export.errors import UserError
from nm_export.recipe import PublishSection, Recipe


def publish_settings(
    recipe: Recipe,
    *,
    repo_id: str | None = None,
    revision: str | None = None,
    private: bool = False,
    create_pr: bool = False,
    overwrite: bool = False,
) -> PublishSection:
    """Return a recipe's `publish` section with the options of a call; its `repo_id` always has a value.

    Args:
        recipe: the recipe.
        repo_id: instead of the recipe's; without either, it is made of the model's name.
        revision: instead of the recipe's.
        private: whether the repository is private; it is, too, if the recipe says so.
        create_pr: likewise.
        overwrite: likewise.

    Raises:
        UserError: an option is no name of a repository or of a branch.
    """
    section = recipe.publish
    name = repo_id or section.repo_id or recipe.name
    changes = {
        "repo_id": name,
        "revision": revision or section.revision,
        "private": private or section.private,
        "create_pr": create_pr or section.create_pr,
        "overwrite": overwrite or section.overwrite,
    }
    given = {key: getattr(section, key) for key in section.model_fields_set}
    try:
        return PublishSection(**{**given, **changes})
    except ValidationError as error:
        details = error.errors(include_url=False)[0]
        reason = str(details.get("ctx", {}).get("error", details["msg"]))
        if details["loc"] != ("repo_id",):
            raise UserError(f"--revision: {reason}") from error
        if repo_id:
            raise UserError(f"--repo-id: {reason}") from error
        raise UserError(
            f"The repository would be called like the model, and {reason}; give --repo-id or publish.repo_id"
        ) from error


def check_publishing(recipe: Recipe, push_to_hub: bool, **options: str | bool | None) -> None:
    """Refuse what a run could not publish, or would not: the same for a run and for its dry run.

    Args:
        recipe: the recipe.
        push_to_hub: whether something is published.
        options: `repo_id`, `revision`, `private` and `create_pr`, as they were given.

    Raises:
        UserError: an option of publishing where nothing is published, or nothing would be verified before.
    """
    given = next((name for name, value in options.items() if value), None)
    if given and not push_to_hub:
        option = given.replace("_", "-")
        raise UserError(f"{given} (--{option}) is about publishing; give push_to_hub (--push-to-hub) too.")
    if push_to_hub and not recipe.verify.enabled:
        raise UserError("--push-to-hub needs verify.enabled: nothing is published unverified.")
