domain "a" {
  service "web" {
    selector "nomad" { job = "web", group = "g" }
  }
