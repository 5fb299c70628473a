knot port forward frontend 8080 backend-api 3000
knot port list frontend
knot port stop frontend 8080
