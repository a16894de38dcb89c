"use strict";
(() => {
  const form = document.querySelector(".controls"), cards = [...document.querySelectorAll("article")];
  const [kind, group, name, strength, count] = ["kind", "class", "name", "strength", "count"].map(id => document.getElementById(id));
  function filter() {
    let shown = 0;
    for (const card of cards) {
      const fits = (!kind.value || card.dataset.kind.split(" ").includes(kind.value))
        && (!group.value || card.dataset.class === group.value)
        && card.dataset.name.includes(name.value.toLowerCase());
      card.hidden = !fits;
      shown += fits;
    }
    count.textContent = `${shown} of ${cards.length} scans`;
  }
  function blend() {
    for (const map of document.querySelectorAll(".map")) map.style.opacity = strength.value / 100;
  }
  form.hidden = false;
  form.addEventListener("submit", event => event.preventDefault());
  for (const control of [kind, group, name]) control.addEventListener("input", filter);
  strength.addEventListener("input", blend);
  filter();
  blend();
})();
