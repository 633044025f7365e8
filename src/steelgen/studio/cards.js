// Buttons within cards: a press is told to the server, and focus finds its button again when the cards are new.
let pressed = null;
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-number]");
  if (!button || button.disabled) return;
  pressed = button.dataset.number;
  trigger("press", { number: Number(button.dataset.number) });
});
watch("value", () => {
  if (pressed === null) return;
  element.querySelector(`button[data-number="${pressed}"]`)?.focus({ preventScroll: true });
  pressed = null;
});
